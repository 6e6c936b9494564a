"""From token ids and embeddings to conditions, with gradients all the way."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from expunge import Concept, Edit, Model
from expunge.edits.gates import Tokens
from expunge.edits.installed import gated
from expunge.edits.membranes import Membranes
from expunge.edits.residual_gates import ResidualGates
from expunge.models.sdxl import SDXL
from expunge.testing import membrane, random
from tiny_sdxl import pipeline

PROMPTS = ["a picture of santa claus", "a dog", ""]
AT = torch.tensor([[4, 5], [1, 2], [1, 2]])
"""Where two embeddings are replaced in each of ``PROMPTS``."""


def table_rows(model: Model, ids: Tensor) -> Tensor:
    """The table's own embeddings at ``AT``, ``[prompts, 2, width]``."""
    return model.text_encoders[0].table.detach()[ids.gather(1, AT)]


def test_ids_give_what_prompts_give(pico: Model) -> None:
    [text] = pico.read(PROMPTS)
    with torch.no_grad():
        assert torch.equal(pico.embed(text).rows, pico.condition(PROMPTS).rows)


def test_the_tables_own_embeddings_in_their_places_change_nothing(pico: Model) -> None:
    [text] = pico.read(PROMPTS)
    own = table_rows(pico, text.ids)
    with torch.no_grad():
        plain = pico.embed(text).rows
        assert torch.equal(pico.embed(text.replaced(own, AT)).rows, plain)
        [first] = pico.read(PROMPTS[:1])
        same = pico.embed(first.replaced(own[0], AT[:1])).rows
        other = pico.embed(first.replaced(random(2, 32), AT[:1])).rows
        assert torch.equal(same, pico.embed(first).rows)
    assert torch.equal(other[:, :4], same[:, :4])
    assert not torch.allclose(other[:, 4:], same[:, 4:], atol=1e-3)
    assert not pico.pipe.text_encoder.get_input_embeddings()._forward_hooks


def cpe_like(model: Model) -> ResidualGates:
    names, width = model.select("cross_attention.kv"), model.text_width
    widths = tuple(len(model.base_weight(name)) for name in names)
    return ResidualGates(
        names, random(1, 2, width) / 3, None, random(1, width, seed=1) / 3,
        random(1, len(names), 2, width, seed=2) / 3, random(1, 2, sum(widths), seed=3) / 3, widths,
    )  # fmt: skip


def spm_like(model: Model) -> Membranes:
    payload = membrane(model, Concept(target="ghost"), metric="clipcos").components[0].payload
    assert isinstance(payload, Membranes)
    return payload


@pytest.mark.parametrize("made", [None, cpe_like, spm_like])
def test_replaced_embeddings_get_their_gradients(pico: Model, made: object) -> None:
    """Compared with differences, through the text encoder, the denoiser and its gates."""
    gates = [made(pico)] if callable(made) else []
    pico.cast(torch.float64)
    [text] = pico.read(PROMPTS)
    latents = random(3, *pico.latent_shape).double()
    direction, start = random(3, 2, 32, seed=5).double(), table_rows(pico, text.ids)

    def value(rows: Tensor) -> Tensor:
        condition = pico.embed(text.replaced(rows, AT))
        return (pico.predict(latents, 300, condition) * latents).sum()

    with gated(pico, gates):
        rows = start.clone().requires_grad_()
        value(rows).backward()
        step = 1e-4  # the differences converge to the slope as its square
        with torch.no_grad():
            numeric = (value(start + step * direction) - value(start - step * direction)) / step / 2
    assert rows.grad.flatten(1).norm(dim=1).min() > 0
    slope = float((rows.grad * direction).sum())
    assert slope == pytest.approx(float(numeric), rel=1e-4)


def test_gradients_reach_the_text_encoder_where_it_wants_them(pico: Model) -> None:
    parameters = pico.pipe.text_encoder.named_parameters()
    weight = next(p for name, p in parameters if name.endswith("final_layer_norm.weight"))
    weight.requires_grad_()
    pico.predict(
        random(1, *pico.latent_shape), 300, pico.embed(*pico.read(["a dog"]))
    ).sum().backward()
    assert weight.grad.abs().sum() > 0
    assert not pico.condition(["a dog"]).rows.requires_grad


def test_a_replaced_token_has_no_id(pico: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Sequence[int] | None] = []
    real = Membranes.additions

    def listening(self: Membranes, rows: Tensor, tokens: Tokens) -> object:
        heard.extend(tokens)
        return real(self, rows, tokens)

    monkeypatch.setattr(Membranes, "additions", listening)
    edit: Edit = membrane(pico, Concept(target="santa claus"), metric="tokenuni")
    [text] = pico.read(PROMPTS[:1])
    ids = pico.tokens(PROMPTS[0])
    with edit.applied(pico), torch.no_grad():
        for rows, at in ((random(2, 32), AT[:1]), (random(1, 32), AT[:1, :1])):
            for given in (text.replaced(rows, at), text):
                pico.predict(random(1, *pico.latent_shape), 3, pico.embed(given))
    assert [list(known) for known in heard] == [
        [*ids[:3], -1, -1], ids, [*ids[:3], -1, ids[4]], ids,
    ]  # fmt: skip


def test_two_text_encoders_are_read_and_replaced_each_by_itself(tmp_path: Path) -> None:
    model = SDXL(pipeline(tmp_path))
    one, two = model.read(["a dog"])
    at, rows = torch.tensor([[2]]), random(1, 16)
    with torch.no_grad():
        plain = model.embed(one, two)
        assert torch.equal(plain.rows, model.condition(["a dog"]).rows)
        assert torch.equal(plain.pooled, model.condition(["a dog"]).pooled)
        first = model.embed(one.replaced(rows, at), two)
        second = model.embed(one, two.replaced(rows, at))
    assert torch.equal(first.rows[..., 16:], plain.rows[..., 16:])
    assert torch.equal(first.pooled, plain.pooled)
    assert not torch.equal(first.rows[..., :16], plain.rows[..., :16])
    assert torch.equal(second.rows[..., :16], plain.rows[..., :16])
    assert not torch.equal(second.pooled, plain.pooled)
