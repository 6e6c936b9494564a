"""Residual attention gates: the published rule, one winner a token, for any number of gates."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from expunge import Edit, ExpungeError, Model
from expunge.edits import residual_gates
from expunge.edits.base import Base
from expunge.edits.component import Component, Provenance
from expunge.edits.gates import Gate
from expunge.edits.residual_gates import ResidualGates, openings


def made(
    model: Model, *, seed: int = 0, concepts: int = 1, r: int = 3, h: int = 2, tied: bool = True
) -> ResidualGates:
    names = model.select("cross_attention.kv")
    widths = tuple(len(model.base_weight(name)) for name in names)
    draws, width = torch.Generator().manual_seed(seed), model.text_width

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draws) / 3

    query = random(concepts, r, width)
    key = None if tied else random(concepts, r, width)
    down, up = random(concepts, len(names), h, width), random(concepts, h, sum(widths))
    return ResidualGates(names, query, key, random(concepts, width), down, up, widths)


def by_the_book(gates: list[ResidualGates], rows: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Every concept's gate for one prompt, token by token, in float64; the additions, the winners.

    P = X Q, A = softmax(P P^T), E = A X, g = sigmoid(E s); the largest g adds g E D U.
    """
    rows = rows.double()
    edited, opened = [], []
    for gate in gates:
        query = gate.query[0].double()
        key = query if gate.key is None else gate.key[0].double()
        looks = torch.softmax((rows @ query.T) @ (rows @ key.T).T, -1)
        e = looks @ rows
        g = torch.sigmoid(e @ gate.gate[0].double())
        opened.append(g)
        edited.append(g[:, None] * e)
    winner = torch.stack(opened).argmax(0)
    added = {
        name: torch.zeros(len(rows), w).double()
        for name, w in zip(gates[0].names, gates[0].widths, strict=True)
    }
    for token, n in enumerate(winner.tolist()):
        for layer, name in enumerate(gates[n].names):
            down, up = gates[n].down[0, layer].double(), gates[n].ups[layer][0].double()
            added[name][token] = edited[n][token] @ down.T @ up
    return added, winner


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("chunk", [1, 2**22])
def test_stacked_gates_are_the_published_rule(
    pico: Model, monkeypatch: pytest.MonkeyPatch, chunk: int, tied: bool
) -> None:
    monkeypatch.setattr(residual_gates, "CHUNK", chunk)
    gates = [made(pico, seed=n, r=2 + n % 3, h=1 + n % 2, tied=tied or n == 1) for n in range(7)]
    together = ResidualGates.joined(gates)
    rows = pico.encode(["a picture of santa claus", "ghost dog"])
    additions = together.additions(rows, [None, None])
    winners = set()
    for at, row in enumerate(rows):
        expected, winner = by_the_book(gates, row)
        assert torch.equal(together.opened(row).winner, winner)
        winners |= set(winner.tolist())
        for name, added in expected.items():
            ours = additions[name](rows)[at].double()
            assert (ours - added).norm() < 1e-5 * added.norm()
    assert len(winners) > 2


def test_equal_gates_give_the_first(pico: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residual_gates, "CHUNK", 1)
    one, two = made(pico), made(pico, seed=1)
    twins = ResidualGates.joined([two, one, one, two])
    rows = pico.encode(["a dog"])[0]
    assert set(twins.winner(rows).tolist()) <= {0, 1}


def test_memory_of_the_gates_does_not_grow_with_their_number(
    pico: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    real = residual_gates.openings

    def watched(rows: Tensor, query: Tensor, *rest: Tensor) -> Tensor:
        sizes.append(len(query))
        return real(rows, query, *rest)

    monkeypatch.setattr(residual_gates, "openings", watched)
    monkeypatch.setattr(residual_gates, "CHUNK", 16 * (16 + 6) * 5)
    made(pico, concepts=23).winner(pico.encode(["a dog"])[0])
    assert sizes == [5, 5, 5, 5, 3]


def test_a_prompts_numbers_do_not_depend_on_the_batch(pico: Model) -> None:
    gates = made(pico, concepts=5)
    rows = pico.encode(["a dog", "ghost", "a dog"])
    all_of_them = gates.additions(rows, [None] * 3)
    fresh = made(pico, concepts=5)
    for at in range(3):
        alone = fresh.additions(rows[at : at + 1], [None])
        for name in gates.names:
            row = all_of_them[name](rows)[at]
            assert torch.equal(alone[name](rows[at : at + 1])[0], row)


def test_a_prompt_is_opened_once(pico: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    real = ResidualGates._open
    monkeypatch.setattr(
        ResidualGates, "_open", lambda self, rows: opened.append(1) or real(self, rows)
    )
    gates = made(pico, concepts=2)
    gates.additions(pico.encode(["", "", "a dog", "a dog"]), [None] * 4)
    gates.additions(pico.encode(["", "a cat"]), [None] * 2)
    assert len(opened) == 3


def test_gradients_with_respect_to_the_prompt(pico: Model) -> None:
    gates = made(pico, concepts=4).on(torch.device("cpu"), torch.float64)
    rows = pico.encode(["a picture of a ghost"]).double()
    direction = torch.randn_like(rows)
    weights = {n: torch.randn(w).double() for n, w in zip(gates.names, gates.widths, strict=True)}

    def value(at: Tensor) -> Tensor:
        added = gates.additions(at, [None])
        return torch.stack([(added[n](at) * weights[n]).sum() for n in gates.names]).sum()

    moving = rows.clone().requires_grad_()
    value(moving).backward()
    step = 1e-6
    numeric = (value(rows + step * direction) - value(rows - step * direction)) / (2 * step)
    assert float((moving.grad * direction).sum()) == pytest.approx(float(numeric), rel=1e-5)


def test_half_precision_prompts_are_opened_in_single(pico: Model) -> None:
    gates = made(pico, concepts=3)
    rows = pico.encode(["a ghost"])
    half = rows.bfloat16()
    added, exact = gates.additions(half, [None]), gates.additions(half.float(), [None])
    name = gates.names[0]
    assert added[name](half).dtype == torch.float32
    assert torch.equal(added[name](half), exact[name](half.float()))


def edit(model: Model, gates: ResidualGates) -> Edit:
    provenance = Provenance(
        method="cpe",
        settings={},
        concepts=(),
        keep=(),
        seed=0,
        base=Base.of(model, gates.names, reads_text=True),
        versions={},
    )
    return Edit((Component(gates, provenance),))


def test_they_work_in_the_unet_and_leave_no_trace(pico: Model, tmp_path: Path) -> None:
    one, two = (edit(pico, made(pico, seed=n)) for n in range(2))
    assert isinstance(one.components[0].payload, Gate)
    (one + two).save(tmp_path / "both.safetensors")
    both = Edit.load(tmp_path / "both.safetensors")
    assert both.id == (one + two).id
    assert (both - two).id == one.id
    condition, latents = pico.condition(["a ghost"]), torch.randn(1, *pico.latent_shape)
    with torch.no_grad():
        before = pico.predict(latents, 3, condition)
        module = pico.denoiser.get_submodule(both.names[0].rpartition(".")[0])
        plain = module(condition.rows)
        with both.applied(pico):
            during = pico.predict(latents, 3, condition)
            moved = module(condition.rows) - plain
        assert torch.equal(pico.predict(latents, 3, condition), before)
    assert not torch.allclose(during, before)
    added, _ = by_the_book([part.payload for part in both.components], condition.rows[0])
    assert torch.allclose(moved[0].double(), added[both.names[0]], atol=1e-5)


def test_an_untied_gate_stays_so_beside_a_tied_one(pico: Model) -> None:
    tied, untied = made(pico), made(pico, seed=1, tied=False)
    together = ResidualGates.joined([tied, untied])
    rows = pico.encode(["a ghost"])[0]
    maps = [(gate.query, gate.key, gate.gate) for gate in (tied, untied)]
    both = openings(rows, together.query, together.key, together.gate)
    assert torch.allclose(both, torch.cat([openings(rows, *each) for each in maps]), rtol=1e-5)


def test_gates_of_other_layers_are_refused(pico: Model) -> None:
    gates = made(pico)
    fewer = ResidualGates(
        gates.names[:1], gates.query, None, gates.gate, gates.down[:, :1], gates.ups[0],
        gates.widths[:1],
    )  # fmt: skip
    with pytest.raises(ExpungeError, match="for different layers"):
        ResidualGates.joined([gates, fewer])
    tensors = gates.tensors()
    with pytest.raises(ExpungeError, match="gate has shape"):
        ResidualGates.of(gates.names, tensors | {"gate": tensors["gate"][:, 1:]})
    with pytest.raises(ExpungeError, match="factors of 8 layers"):
        ResidualGates.of(gates.names[1:], tensors)
