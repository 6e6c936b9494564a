"""CPE: losses are the paper's, concepts don't touch each other, a stopped run ends the same."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from expunge import Concept, Edit, ExpungeError, Model, Policy, erase
from expunge.doctor.costs import cost, measure
from expunge.edits.applied import Applied
from expunge.edits.residual_gates import ResidualGates
from expunge.method.run import Run
from expunge.methods import configured
from expunge.methods.cpe import method as cpe
from expunge.methods.cpe.bank import Bank, mentions, mixed, nearest_names
from expunge.methods.cpe.losses import StepEmbeddings, Surface, attacking, erasing, kappa
from expunge.methods.cpe.method import CPE
from expunge.methods.cpe.student import GateStudent
from expunge.training import saving
from expunge.training.loop import Monitor, Trainer, train
from stopping import stopped_in

SHORT: dict[str, Any] = {
    "rounds": 2, "first_iterations": 4, "later_iterations": 3, "attack_iterations": 2,
    "batch_size": 3, "shifts": 2, "gate_rank": 4, "lr": 1e-2, "lr_warmup": 1,
}  # fmt: skip
GHOST = Concept(target="ghost", anchor="dog", keep=["cat", "art"])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gates(surface: Surface, concepts: int, *, r: int = 3, h: int = 2, tied: bool) -> ResidualGates:
    width, layers = surface.weights[0].shape[1], len(surface.names)
    query = random(concepts, r, width) / 9
    key = None if tied else random(concepts, r, width, seed=1) / 9
    gate, down = random(concepts, width, seed=2), random(concepts, layers, h, width, seed=3)
    up = random(concepts, h, sum(surface.widths), seed=4) / 9
    return ResidualGates(surface.names, query, key, gate, down, up, surface.widths)


def added(own: ResidualGates, n: int, rows: Tensor) -> list[Tensor]:
    """g E D U of every layer as the paper has it, float64; ``rows`` are ``[batch, tokens, w]``."""
    query = own.query[n].double()
    key = query if own.key is None else own.key[n].double()
    looks = torch.softmax((rows @ query.T) @ (rows @ key.T).mT, -1)
    e = looks @ rows
    edited = torch.sigmoid(e @ own.gate[n].double())[..., None] * e
    pairs = zip(own.down[n].double(), (up[n].double() for up in own.ups), strict=True)
    return [edited @ down.T @ up for down, up in pairs]


def direct(
    surface: Surface, own: ResidualGates, n: int, prompts: StepEmbeddings, g: float, shifts: Tensor
) -> dict[str, Tensor]:
    """All losses of one concept with keys and values written out, float64."""
    t, u = prompts.target[n].double(), prompts.neutral[n].double()
    anchors = prompts.anchors if prompts.anchors.ndim == 3 else prompts.anchors[n]
    if prompts.counted is not None:
        anchors = anchors[prompts.counted[n]]
    shifted = t + shifts[n].double()
    parts: dict[str, list[Tensor]] = {"erase": [], "anchor": [], "adversarial": [], "attack": []}
    on_target, on_shifted = added(own, n, t[None]), added(own, n, shifted)
    on_anchors = added(own, n, anchors.double())
    for at, weight in enumerate(surface.weights):
        w, k = weight.double(), surface.kappa[at]
        goal = u @ w.T + g * (u @ w.T - t @ w.T)
        parts["erase"].append(k * (goal - (t @ w.T + on_target[at])).square().mean())
        parts["adversarial"].append(k * (goal - (shifted @ w.T + on_shifted[at])).square().mean())
        parts["anchor"].append(k * on_anchors[at].square().mean())
        parts["attack"].append(k * (shifted @ w.T + on_shifted[at] - t @ w.T).square().mean())
    return {name: torch.stack(terms).mean() for name, terms in parts.items()}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("own_anchors", [True, False])
def test_reduced_losses_and_gradients_are_the_direct_ones(
    pico: Model, tied: bool, own_anchors: bool
) -> None:
    surface, count = Surface.of(pico), 3
    words = ["ghost", "cat", "santa claus", "dog", "art", "man"]
    rows = pico.encode(words)
    anchors = random(count, 5, *rows.shape[1:], seed=6)
    counted = torch.tensor([[True, False, True, True, True]] * count)
    prompts = StepEmbeddings(
        rows[:3], rows[3:], anchors if own_anchors else anchors[0], None if own_anchors else counted
    )
    shifts = random(count, 2, *rows.shape[1:], seed=7) / 5
    one, two = gates(surface, count, tied=tied), gates(surface, count, tied=tied)
    for made in (one, two):
        for name, tensor in made.tensors().items():
            if name != "widths":
                tensor.requires_grad_()
    losses = erasing(one, surface, prompts, 0.7, shifts, surface.squared(shifts))
    wanted = [direct(surface, two, n, prompts, 0.7, shifts) for n in range(count)]
    for name in ("erase", "anchor", "adversarial"):
        exact = torch.stack([each[name] for each in wanted]).detach()
        torch.testing.assert_close(getattr(losses, name).detach(), exact, rtol=1e-5, atol=0)
    assert losses.adversarial is not None
    weighed = losses.erase + 3 * losses.anchor + 2 * losses.adversarial
    weighed.sum().backward()
    exact = [each["erase"] + 3 * each["anchor"] + 2 * each["adversarial"] for each in wanted]
    torch.stack(exact).sum().backward()
    for name, tensor in one.tensors().items():
        if name != "widths":
            gradient = two.tensors()[name].grad
            assert (tensor.grad - gradient).norm() < 1e-5 * gradient.norm(), name


def test_the_attackers_loss_is_the_direct_one(pico: Model) -> None:
    surface = Surface.of(pico)
    own = gates(surface, 2, tied=True)
    rows = pico.encode(["ghost", "cat"])
    one, two = (random(2, 3, *rows.shape[1:]).div(5).requires_grad_() for _ in range(2))
    ours = attacking(own, surface, rows, one)
    prompts = StepEmbeddings(rows, rows, rows)
    exact = torch.stack([direct(surface, own, n, prompts, 0, two)["attack"] for n in range(2)])
    torch.testing.assert_close(ours.detach(), exact.detach(), rtol=1e-5, atol=0)
    ours.sum().backward()
    exact.sum().backward()
    assert (one.grad - two.grad).norm() < 1e-5 * two.grad.norm()


def test_kappa_bounds_what_a_change_of_keys_and_values_can_do(pico: Model) -> None:
    names = pico.select("cross_attention.kv")
    tokens = pico.encode([""]).shape[1]
    for name, found in zip(names, kappa(pico, names).tolist(), strict=True):
        layer = pico.denoiser.get_submodule(name.removesuffix(".weight").rpartition(".")[0])
        out = layer.to_out[0].weight.double()
        exact = torch.linalg.svdvals(out)[0]
        if name.endswith("to_k.weight"):
            values = torch.linalg.svdvals(out @ layer.to_v.weight.double())[0]
            exact = values * torch.linalg.svdvals(layer.to_q.weight.double())[0] / tokens
        assert found == pytest.approx(float(exact), rel=1e-9)


def test_groups_of_concepts_have_the_gradients_of_all_at_once(
    pico: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, method = Policy.of(["ghost", "dog", "cat"]), CPE(**SHORT)
    found = []
    for together in (2, 16):
        monkeypatch.setattr(cpe, "TOGETHER", together)
        student = method.student(pico, policy, 0)
        with torch.no_grad():
            student.weights["up"] += random(*student.weights["up"].shape) / 9
            student.weights["shifts"] += random(*student.weights["shifts"].shape) / 9
        for batch in method.batches(Run(student, policy, 0), [6, 4]):
            method.loss(student, batch)["loss"].backward()
        found.append({name: weight.grad for name, weight in student.weights.items()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-5, atol=1e-8)


def test_each_concept_is_a_part_of_its_own(pico: Model) -> None:
    concepts = [GHOST, Concept(target="santa claus", anchor="man", synonyms=["noto"])]
    edit = erase(pico, Policy(erase=concepts), "cpe", **SHORT)
    assert [part.provenance.concepts for part in edit.components] == [(c,) for c in concepts]
    assert {len(part.payload) for part in edit.components} == {1}
    assert edit.names == pico.select("cross_attention.kv")
    assert edit.gated
    assert edit.provenance[0].steps == CPE(**SHORT).iterations == 4 + 2 + 3
    first = Edit(edit.components[:1])
    condition, latents = pico.condition(["ghost"]), random(1, *pico.latent_shape)
    with torch.no_grad():
        before = pico.predict(latents, 3, condition)
        with edit.applied(pico):
            assert not torch.equal(pico.predict(latents, 3, condition), before)
        with (edit - first).applied(pico):
            pass
        assert torch.equal(pico.predict(latents, 3, condition), before)


def test_a_concepts_losses_do_not_depend_on_the_others(pico: Model) -> None:
    """From the same batch: draws of the gates are the concept's own, losses are summed."""
    method, alone = CPE(**SHORT), Policy.of([GHOST])
    both = Policy.of([Concept(target="man"), GHOST])
    one, two = (method.student(pico, policy, 0) for policy in (alone, both))
    assert torch.equal(one.weights["query"][0], two.weights["query"][1])
    batch = next(method.batches(Run(two, both, 0), [0]))
    for student, part in ((one, {n: t[1:] if t.shape[0] == 2 else t for n, t in batch.items()}),
                          (two, batch)):  # fmt: skip
        Trainer(method, student).step([part])
        method.loss(student, part)["loss"].backward()
    gradients = [student.weights["up"].grad for student in (one, two)]
    torch.testing.assert_close(gradients[0][0], gradients[1][1], rtol=1e-4, atol=1e-8)


def test_it_learns_to_open_for_the_concept_alone(pico: Model) -> None:
    settings = {
        "rounds": 1, "first_iterations": 120, "lr": 3e-2, "pal": 10.0, "noise": 0.0,
        "batch_size": 4, "contexts": ["a {}"], "guidance_scale": 0.0, "adapter_rank": 4,
    }  # fmt: skip
    edit = erase(pico, GHOST, "cpe", **settings)
    payload, prompts = edit.components[0].payload, ["a ghost", "a cat"]
    conditions, wanted = pico.encode(prompts), pico.encode(["a dog", "a cat"])
    additions = payload.additions(conditions, [None, None])
    far, off = torch.zeros(2), torch.zeros(2)
    for name in payload.names:
        weight = pico.base_weight(name)
        goal = (wanted - conditions) @ weight.T
        miss = additions[name](conditions) - goal
        far += torch.stack([goal[0].square().sum(), (wanted[1] @ weight.T).square().sum()])
        off += miss.square().sum((1, 2))
    assert off[0] < 0.5 * far[0]
    assert off[1] < 0.02 * far[1]


@pytest.mark.parametrize("stop", [2, 5, 8])
@pytest.mark.parametrize("fidelity", ["corrected", "original"])
def test_stopping_anywhere_changes_nothing(
    pico: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fidelity: str, stop: int
) -> None:
    monkeypatch.setattr(saving, "SAVE_EVERY", 1)
    monkeypatch.setattr(saving, "SAVE_SHARE", 1.0)
    settings = {**SHORT, "fidelity": fidelity, "general_words": ["cat", "art"]}
    policy = Policy.of([GHOST, "man"])
    whole = erase(pico, policy, "cpe", **settings)
    with stopped_in(stop):
        erase(pico, policy, "cpe", checkpoints=tmp_path, **settings)
    resumed = erase(pico, policy, "cpe", checkpoints=tmp_path, **settings)
    assert resumed.id == whole.id


def test_the_learning_rate_follows_the_stages(pico: Model) -> None:
    method = CPE(
        **{**SHORT, "first_iterations": 9, "first_cycles": 2, "later_lr": 1e-3, "attack_lr": 0.5,
           "attack_warmup": 0, "rounds": 2}
    )  # fmt: skip
    trainer = Trainer(method, method.student(pico, Policy.of("ghost"), 0))
    rates = []
    for _ in range(method.iterations):
        rates.append([group["lr"] for group in trainer.optimizer.param_groups])
        trainer.optimizer.step()
        trainer.schedule.step()

    def cosine(progress: float) -> float:
        return (1 + math.cos(math.pi * progress)) / 2

    first = [0.0, *(1e-2 * cosine(2 * step / 8 % 1) for step in range(8))]
    assert [one for one, _ in rates] == pytest.approx([*first, 0, 0, 0, 1e-3, 1e-3 * cosine(0.5)])
    assert [two for _, two in rates] == pytest.approx([0] * 9 + [0.5, 0.5 * cosine(0.5), 0, 0, 0])


def test_the_released_program_attacks_once_more(pico: Model) -> None:
    method = CPE(fidelity="original", **SHORT)
    assert [stage.attack for stage in method.stages] == [False, True, False, True]
    assert CPE(**{**SHORT, "attack_iterations": 0}).iterations == 7
    published = configured("cpe", preset="artists", fidelity="original")
    assert sum(s.length for s in published.stages if s.attack) == 4500
    assert sum(s.length for s in published.stages if not s.attack) == 5850
    students = method.student(pico, Policy.of(["ghost", "dog"]), 3)
    assert torch.equal(*students.weights["query"])
    bound = 1 / (32 * 4) ** 0.5 / 32**2
    largest = {
        name: float(weight.detach().abs().max()) for name, weight in students.weights.items()
    }
    assert 0.9 * bound < largest["query"] <= bound
    assert 0.9 < largest["down"] * 32**0.5 <= 1
    assert largest["up"] == largest["gate"] == 0


def test_anchors_are_what_the_formula_says() -> None:
    rows, noise, mixing = random(4, 5, 6), random(4, 5, 6, seed=1), torch.tensor([0.25, 0.5])
    made = mixed(rows, noise, mixing, 0.01)
    for j, m in enumerate(mixing.tolist()):
        first, second = (rows[at] + 0.01 * rows[at].norm() * noise[at] for at in (2 * j, 2 * j + 1))
        torch.testing.assert_close(made[j], m * first + (1 - m) * second)


def test_what_names_a_concept_is_no_anchor_of_it(pico: Model) -> None:
    policy = Policy(erase=(GHOST, Concept(target="cat's")), keep=("ghosts", "man"))
    method = CPE(**SHORT, contexts=["a {}"], general_words=["GHOST hat"])
    plan = method.plan(pico, policy)
    (bank,) = plan.banks
    owned = {words for words, own in zip(bank, plan.own[0].tolist(), strict=True) if own}
    assert owned == {"GHOST hat", "a GHOST hat", "ghost", "a ghost"}
    assert {"a ghosts", "a man", "a cat", "a dog", "a cat's"} <= set(bank) - owned
    student = method.student(pico, policy, 0)
    batch = next(method.batches(Run(student, policy, 0), [0]))
    assert batch["counted"].shape == (2, method.batch_size + 1)
    assert batch["counted"][:, -1].all()
    chosen = torch.tensor([(at + 0.5) / len(bank) for at in range(len(bank) // 2 * 2)])
    gaussian = torch.zeros(len(chosen), *batch["anchors"].shape[1:])
    half = torch.full((len(chosen) // 2,), 0.5)
    found = Bank(Run(student, policy, 0), plan).anchors(chosen, half, gaussian, 0.0)
    pairs = plan.own[:, : len(chosen)].view(2, -1, 2).any(-1)
    assert torch.equal(found[1][:, :-1], ~pairs)
    torch.testing.assert_close(found[0][0], pico.encode(bank[:2]).mean(0))
    torch.testing.assert_close(found[0][-1], pico.encode([""])[0])


def test_each_concept_and_what_it_keeps_stand_in_its_own_sentences(pico: Model) -> None:
    ink = Concept(target="ink", anchor="oil", kind="style", keep=["wax"], contexts=["a {} cat"])
    ghost = GHOST.model_copy(update={"keep": ("man",), "contexts": ("one {}",)})
    plan = CPE(**SHORT).plan(pico, Policy(erase=(ink, ghost)))
    assert plan.pairs[0] == (("ink", "oil"), ("a ink cat", "a oil cat"))
    assert [target for target, _ in plan.pairs[1]] == ["ghost", "one ghost"]
    wanted = {"wax", "a wax cat", "man", "one man", *(p for part in plan.pairs for p, _ in part)}
    assert set(plan.banks[0]) == wanted | {p for part in plan.pairs for _, p in part}


def test_phrases_are_found_as_whole_words() -> None:
    concept = Concept(target="cat", synonyms=["noto"])
    assert mentions(concept, ["a Cat, please", "a category", "noto style", "knot"]) == [
        True, False, True, False,
    ]  # fmt: skip


def test_the_nearest_names_are_taken(pico: Model) -> None:
    pool = ["santa claus", "ghost dog", "man", "art", "noto"]
    rows = torch.nn.functional.normalize(pico.encode([*pool, "dog"]).flatten(1))
    order = [pool[at] for at in (rows[:-1] @ rows[-1]).argsort(descending=True).tolist()]
    wanted = [name for name in order if name != "ghost dog"][:2]
    assert nearest_names(pico, pool, [Concept(target="dog")], 2) == [wanted]
    plan = CPE(**SHORT, name_pool=pool, nearest=2, contexts=["a {}"]).plan(pico, Policy.of("dog"))
    assert {f"a {name}" for name in wanted} <= set(plan.banks[0])
    assert not any(f"a {name}" in plan.banks[0] for name in order[3:])


def test_a_limit_takes_some_of_the_anchors(pico: Model) -> None:
    plans = [CPE(**SHORT, anchor_limit=limit).plan(pico, Policy.of([GHOST])) for limit in (None, 4)]
    whole, part = (plan.banks[0] for plan in plans)
    assert len(part) == 4 < len(whole)
    assert set(part) < set(whole)


def test_lists_come_from_files(pico: Model, tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("".join(f"word {n}\n" for n in range(30)))
    sentences = tmp_path / "sentences.txt"
    sentences.write_text("a {}\nphoto of {}\n")
    method = configured("cpe", general_words=str(words), contexts=str(sentences), **SHORT)
    assert len(method.general_words) == 30
    assert method.contexts == ("a {}", "photo of {}")
    assert method.sentences(GHOST) == ("{}", "a {}", "photo of {}")
    record = method.model_dump(mode="json")["general_words"]
    assert record["count"] == 30
    assert len(record["sha256"]) == 64
    assert configured("cpe", general_words=["cat"]).model_dump()["general_words"] == ["cat"]
    assert configured("cpe", contexts="a {}").contexts == ("a {}",)
    with pytest.raises(ExpungeError, match="can't read"):
        configured("cpe", general_words=str(tmp_path / "none.txt"))


def test_the_released_program_draws_from_a_bank_for_each_concept(pico: Model) -> None:
    method = CPE(
        fidelity="original", general_words=["cat", "cat", "art"], name_pool=["dogs", "man"],
        nearest=1, contexts=["a {}"], **SHORT,
    )  # fmt: skip
    policy = Policy.of([GHOST.model_copy(update={"anchor": "noto"}), "dog"])
    plan = method.plan(pico, policy)
    assert [len(bank) for bank in plan.banks] == [8, 8]
    assert plan.banks[0].count("a cat") == 2
    assert "dogs" not in plan.banks[1]
    student = method.student(pico, policy, 0)
    batch = next(method.batches(Run(student, policy, 0), [0]))
    assert batch["anchors"].shape[:2] == (2, method.batch_size + 1)
    assert "counted" not in batch
    with pytest.raises(ExpungeError, match="nothing to anchor"):
        erase(pico, GHOST, "cpe", fidelity="original", **SHORT)


def test_a_monitor_sees_the_gates_and_may_end_it(pico: Model, tmp_path: Path) -> None:
    condition, latents = pico.condition(["ghost"]), random(1, *pico.latent_shape)
    with torch.no_grad():
        plain = pico.predict(latents, 3, condition)

    def score(model: Model) -> dict[str, float]:
        with torch.no_grad():
            return {"moved": float((model.predict(latents, 3, condition) - plain).norm())}

    monitor = Monitor(every=3, score=score, stop=lambda scores: scores["moved"] > 0)
    result = train(
        CPE(**SHORT), pico, Policy.of([GHOST]), seed=0, checkpoints=tmp_path, monitor=monitor
    )
    assert result.steps == 3
    assert Applied.to(pico).installed is None
    lines = [json.loads(line) for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    assert lines[2]["moved"] > 0


def test_the_doctor_can_try_it(pico: Model) -> None:
    found = cost(pico, Policy.of([GHOST]), CPE(**SHORT), measure(pico))
    assert found.role == "cross_attention.kv"
    assert found.edit_bytes > 0


def test_shifts_are_squared_once_for_a_stage(pico: Model) -> None:
    student = CPE(**SHORT).student(pico, Policy.of([GHOST]), 0)
    assert isinstance(student, GateStudent)
    before = student.shifts_square
    assert student.shifts_square is before
    CPE(**SHORT).enter(student, 1, 0)
    assert student.shifts_square is not before
    exact = student.surface.squared(student.weights["shifts"].detach())
    torch.testing.assert_close(student.shifts_square, exact)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"iterations": 7}, "iterations: 7, but the stages have 5400 steps; set rounds"),
        ({"rank": 2}, "cpe: rank: Extra inputs are not permitted (settings: "),
        ({"precision": "bf16"}, "cpe: precision: Extra inputs"),
        ({"lr_schedule": "constant"}, "cpe: lr_schedule: Extra inputs"),
        ({"rounds": 0}, "rounds: Input should be greater"),
        ({"rounds": "many"}, "rounds: Input should be a valid integer"),
        ({"fidelity": "original", "noise": 0.1}, "always uses this value; leave it at 0.001"),
        ({"fidelity": "original", "tied": False}, "tied: the released program uses one map"),
        ({"contexts": ["no place"]}, "must hold {} once"),
    ],
)
def test_wrong_settings_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ExpungeError) as caught:
        configured("cpe", **values)
    assert message in str(caught.value)
