"""Guards: a negative prompt as an edit draws what the pipeline draws with a negative prompt."""

from collections.abc import Callable, Mapping
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from expunge import Concept, Edit, ExpungeError, Model, erase
from expunge.edits.applied import Applied
from expunge.edits.base import Base
from expunge.edits.component import Component, Provenance
from expunge.edits.drawings import Drawings
from expunge.edits.gates import Addition, Tokens
from expunge.edits.membranes import Membranes
from expunge.edits.negative_prompt import NegativePrompt
from expunge.formats import cpe, lora, merged, published, spm
from expunge.formats.approximate import approximated
from expunge.generation import ImageRequest, Sampler, sample
from expunge.generation.sampling import _lanes, _Texts
from expunge.method.student import Student
from expunge.models.sdxl import SDXL
from expunge.models.unet import UNetCall
from expunge.testing import membrane
from tiny_sdxl import pipeline

WORDS = "noto style"


def negative(model: Model, words: str = WORDS) -> Edit:
    provenance = Provenance(
        method="made up",
        settings={},
        concepts=(Concept(target=words, kind="style"),),
        keep=(),
        seed=0,
        base=Base.of(model, (), reads_text=True),
        versions={},
    )
    payload = NegativePrompt(model.unconditional(), model.condition([words]))
    return Edit((Component(payload, provenance),))


def drawn(model: Model, prompt: str | list[str] = "a dog", **options: Any) -> Tensor:
    """Final latents as the pipeline draws them."""
    model.pipe.set_progress_bar_config(disable=True)
    given = {"num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "latent", **options}
    draws = torch.Generator().manual_seed(3)
    latents: Tensor = model.pipe(prompt, generator=draws, **given).images
    return latents


def bits(model: Model) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in model.denoiser.state_dict().items()}


def untouched(model: Model, before: dict[str, Tensor]) -> bool:
    after = model.denoiser.state_dict()
    own = any("forward" in vars(module) for module in model.denoiser.modules())
    return not own and all(torch.equal(after[name], weight) for name, weight in before.items())


@pytest.fixture(params=["sd", "sdxl with zeros", "sdxl"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Model:
    if request.param == "sd":
        pico: Model = request.getfixturevalue("pico")
        return pico
    return SDXL(pipeline(tmp_path, zeros=request.param == "sdxl with zeros"))


@pytest.mark.parametrize("options", [{}, {"num_images_per_prompt": 2}])
def test_it_draws_what_the_pipeline_draws_with_a_negative_prompt(
    model: Model, options: dict[str, Any]
) -> None:
    before, plain = bits(model), drawn(model, **options)
    wanted = drawn(model, negative_prompt=WORDS, **options)
    own = drawn(model, negative_prompt="a cat", **options)
    with negative(model).applied(model):
        assert torch.equal(drawn(model, **options), wanted)
        assert torch.equal(drawn(model, negative_prompt="a cat", **options), own)
    assert not torch.allclose(plain, wanted, atol=1e-3)
    assert torch.equal(drawn(model, **options), plain)
    assert untouched(model, before)


def test_without_guidance_nothing_changes(model: Model) -> None:
    plain = [drawn(model, prompt, guidance_scale=1.0) for prompt in ("", "a dog")]
    with negative(model).applied(model):
        for prompt, picture in zip(("", "a dog"), plain, strict=True):
            assert torch.equal(drawn(model, prompt, guidance_scale=1.0), picture)


def test_expunge_draws_with_it_what_the_pipeline_draws(pico: Model) -> None:
    request = ImageRequest(case_number="0", prompt="a dog", seed=3)
    sampler = Sampler(scheduler="native", steps=3, guidance_scale=3)
    lanes = _lanes(pico, (8, 8), _Texts(pico))
    levels = drawn(pico, negative_prompt=WORDS, output_type="np")
    with negative(pico).applied(pico):
        [(_, picture)] = sample(pico, [request], sampler)
        assert _lanes(pico, (8, 8), _Texts(pico)) == lanes > 1
    wanted = torch.as_tensor(levels[0] * 255).round()
    assert (wanted - picture.float()).abs().max() <= 1


def test_a_saved_one_is_the_same(model: Model, tmp_path: Path) -> None:
    edit = negative(model)
    assert edit.guarded
    assert not edit.gated
    assert edit.names == edit.changed == ()
    edit.save(tmp_path / "edit.safetensors")
    loaded = Edit.load(tmp_path / "edit.safetensors")
    assert loaded.id == edit.id
    assert loaded.provenance == edit.provenance
    with edit.applied(model):
        wanted = drawn(model)
    with loaded.applied(model):
        assert torch.equal(drawn(model), wanted)


def test_it_stands_beside_weights_and_gates_in_any_order(pico: Model) -> None:
    before, plain = bits(pico), drawn(pico)
    guard = negative(pico)
    weights = erase(pico, Concept(target="dog", anchor="man"), "uce")
    gates = membrane(pico, Concept(target="dog"))
    with (weights + gates).applied(pico):
        wanted = drawn(pico, negative_prompt=WORDS)
        without = drawn(pico)
    for order in permutations((guard, weights, gates)):
        for edit in order:
            edit.apply(pico)
        torch.testing.assert_close(drawn(pico), wanted, rtol=1e-4, atol=1e-5)
        order[1].revert(pico)
        order[0].revert(pico)
        order[2].revert(pico)
        assert untouched(pico, before)
    with (gates + guard + weights).applied(pico):
        together = drawn(pico)
        guard.revert(pico)
        assert torch.equal(drawn(pico), without)
        guard.apply(pico)
        assert torch.equal(drawn(pico), together)
    assert torch.equal(drawn(pico), plain)
    assert Applied.to(pico).installed is None


def test_two_are_one_around_the_other(pico: Model) -> None:
    """The first applied is nearest to the denoiser, and finds no empty prompt left to replace."""
    one, two = negative(pico), negative(pico, "a cat")
    with two.applied(pico):
        wanted = drawn(pico)
    with (one + two).applied(pico):
        assert torch.equal(drawn(pico), wanted)


def test_no_export_can_hold_it(pico: Model, tmp_path: Path) -> None:
    guard = negative(pico)
    whole = guard + erase(pico, "ghost", "uce")
    writers: list[Callable[[Edit], object]] = [
        lambda edit: lora.save(edit, pico, tmp_path / "a.safetensors"),
        lambda edit: lora.save(edit, pico, tmp_path / "a", "peft"),
        lambda edit: published.save(edit, pico, tmp_path / "a.safetensors"),
        lambda edit: merged.save_pipeline(edit, pico, tmp_path / "a"),
        lambda edit: merged.save_checkpoint(edit, pico, tmp_path / "a.safetensors"),
        lambda edit: approximated(edit, pico),
    ]
    for write in writers:
        for edit in (guard, whole, guard + membrane(pico, Concept(target="ghost"))):
            with pytest.raises(ExpungeError, match="has a guard, which stands around the denoiser"):
                write(edit)
    for form, reason in ((spm, "isn't a membrane"), (cpe, "holds residual attention gates")):
        with pytest.raises(ExpungeError, match=reason):
            form.save(guard, pico, tmp_path / "a")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ExpungeError, match="gates or guards, not only weights"):
        Student(pico, pico.select("cross_attention"), start=whole)


def test_another_text_encoder_is_refused(pico: Model) -> None:
    edit, before = negative(pico), bits(pico)
    with torch.no_grad():
        pico.pipe.text_encoder.get_input_embeddings().weight[3, 3] += 0.1
    with pytest.raises(ExpungeError, match="has another text encoder; make the edit again"):
        edit.apply(pico)
    assert untouched(pico, before)
    assert Applied.to(pico).components == ()


def test_a_negative_prompt_makes_one_condition_for_all_steps_and_leaves_unguided_batches(pico):
    guard = NegativePrompt(pico.condition([""]), pico.condition(["ghost"]))
    both = pico.condition(["", "a dog"])
    latents, seen = torch.randn(2, *pico.latent_shape), []

    def denoiser(step):
        seen.append(step.condition.rows)
        return step.latents

    def predicted(latents):
        call = UNetCall({"sample": latents, "timestep": 1, "encoder_hidden_states": both.rows})
        guard.predict(denoiser, Drawings.of(pico).step(call, None))

    for _ in range(2):
        predicted(latents[:1].repeat(2, 1, 1, 1))
    assert seen[0] is seen[1]
    assert torch.equal(seen[0][:1], pico.encode(["ghost"]))
    assert torch.equal(seen[0][1:], both.rows[1:])
    predicted(latents)
    assert seen[2] is both.rows


@pytest.mark.parametrize("guard_first", [True, False])
def test_gates_open_once_for_a_prompt_beside_a_negative_prompt(
    pico: Model, monkeypatch: pytest.MonkeyPatch, guard_first: bool
) -> None:
    """Though the guard gives the denoiser a condition of its own in every step."""
    guard, gates = negative(pico), membrane(pico, Concept(target="dog"))
    opened, found = [], Membranes.additions

    def counting(gate: Membranes, rows: Tensor, tokens: Tokens) -> Mapping[str, Addition]:
        opened.append(rows)
        return found(gate, rows, tokens)

    monkeypatch.setattr(Membranes, "additions", counting)
    with gates.applied(pico):
        wanted = drawn(pico, negative_prompt=WORDS)
        alone = len(opened)
    opened.clear()
    for edit in (guard, gates) if guard_first else (gates, guard):
        edit.apply(pico)
    assert torch.equal(drawn(pico), wanted)
    assert len(opened) == alone == 1
    [rows] = opened
    assert torch.equal(rows, torch.cat([pico.encode([WORDS]), pico.encode(["a dog"])]))
    drawn(pico, "a cat", num_inference_steps=5)
    assert len(opened) == 2
