"""SAFREE: what is filtered lies outside of the concept, and what isn't stays as it is."""

import math
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from expunge import Concept, Edit, ExpungeError, Model, erase, load
from expunge.algebra.projection import projector
from expunge.cli import main
from expunge.edits.drawings import drawing
from expunge.edits.reading import Reader
from expunge.edits.safree import Safree
from expunge.edits.safree_features import damped
from expunge.edits.safree_text import Rule, View, masked, view
from expunge.errors import Unsupported
from expunge.generation import ImageRequest, Sampler, sample
from expunge.generation.sampling import _lanes, _Texts
from expunge.methods import configured
from expunge.methods.safree import SAFREE
from expunge.models import Condition
from expunge.models.sdxl import SDXL
from expunge.testing import membrane, random
from tiny_sdxl import pipeline

PROMPTS = ["a picture of ghost", "a dog", "an image of santa claus", "ghost"]
SAMPLER = Sampler(scheduler="native", steps=4, guidance_scale=5)
ALWAYS = {"self_validation": False, "alpha": -0.9}
"""Every token is a trigger, in all steps."""


def drawn(model: Model, prompt: str | list[str] = PROMPTS[0], **options: Any) -> Tensor:
    model.pipe.set_progress_bar_config(disable=True)
    many = [prompt] if isinstance(prompt, str) else prompt
    noise = [torch.Generator().manual_seed(3 + at) for at in range(len(many))]
    given = {"num_inference_steps": 4, "guidance_scale": 5.0, "output_type": "latent", **options}
    latents: Tensor = model.pipe(many, generator=noise, **given).images
    return latents


def filtering(model: Model, words: str = "ghost", **values: Any) -> Edit:
    return erase(model, words, "safree", **{**ALWAYS, **values})


def guard(edit: Edit) -> Safree:
    payload = edit.components[0].payload
    assert isinstance(payload, Safree)
    return payload


def seen(model: Model, edit: Edit, prompt: str) -> View:
    """What it sees in a prompt."""
    tokens, reader = model.tokens(prompt), Reader(model)
    copies = reader.whole([tokens, *masked(tokens)])
    reader.close()
    return guard(edit).view(model.encode([prompt])[0], copies[1:], copies[0])


def rule(**values: Any) -> Rule:
    method = configured("safree", **values)
    assert isinstance(method, SAFREE)
    return method.rule()


# --- the rule


def test_a_filtered_row_lies_outside_of_the_concept_and_inside_of_the_prompt(pico: Model) -> None:
    edit, prompt = filtering(pico), PROMPTS[0]
    found = seen(pico, edit, prompt)
    rows = pico.encode([prompt])[0]
    assert found.trigger.tolist() == [True] * 4
    away = guard(edit).concept.double()
    new = found.filtered[1:5].double()
    assert (new @ away.T).abs().max() < 1e-4 * new.norm() * away.norm()
    assert torch.equal(found.filtered[0], rows[0])
    assert torch.equal(found.filtered[5:], rows[5:])
    assert not torch.allclose(found.filtered[1:5], rows[1:5], atol=1e-2)


def test_a_trigger_is_a_token_whose_copy_is_farther_than_the_others() -> None:
    distances = torch.tensor([1.0, 1.0, 1.2, 1.0])
    assert rule().triggers(distances, 1.0).tolist() == [False, False, True, False]
    assert rule(alpha=0.3).triggers(distances, 1.0).tolist() == [False] * 4
    equal = torch.ones(4)
    assert not rule().triggers(equal, 1.0).any()


def test_one_token_is_compared_with_nothing_but_the_concept_itself() -> None:
    alone = torch.tensor([3.0])
    assert rule().triggers(alone, 0.05).tolist() == [True]
    assert rule().triggers(alone, 0.5).tolist() == [False]
    assert rule(alone=0.6).triggers(alone, 0.5).tolist() == [True]
    assert rule(fidelity="original").triggers(alone, 0.5).tolist() == [True]


def test_the_name_alone_is_a_trigger_and_another_word_alone_is_not(pico: Model) -> None:
    edit = erase(pico, "ghost", "safree")
    assert seen(pico, edit, "ghost").trigger.tolist() == [True]
    assert seen(pico, edit, "dog").trigger.tolist() == [False]


def test_the_farther_a_prompt_moves_the_longer_it_is_filtered() -> None:
    moves = [0.0, 0.4, 0.5, 0.533, 0.55, 0.6, 1.2]
    assert [rule().last_step(move) for move in moves] == [0, 0, 2, 5, 7, 10, 10]
    artist = [rule(preset="artist").last_step(move) for move in moves]
    assert artist == [0, 0, 0, 2, 5, 10, 10]
    assert rule(most=40).last_step(1.0) == 40
    assert rule(self_validation=False).last_step(0.0) == math.inf


def test_the_released_projections_are_the_same_less_exactly(pico: Model) -> None:
    ours, theirs = (
        seen(pico, erase(pico, "ghost", "safree", fidelity=fidelity), PROMPTS[0])
        for fidelity in ("corrected", "original")
    )
    assert ours.distances.dtype == torch.float64
    assert theirs.distances.dtype == torch.float32
    torch.testing.assert_close(ours.distances.float(), theirs.distances, rtol=1e-3, atol=1e-4)


def test_more_tokens_than_the_rows_are_wide_leave_the_prompt_its_own_span(pico: Model) -> None:
    rows, copies = random(16, 8), random(12, 8, seed=1)
    found = view(rule(**ALWAYS), rows, copies, copies[0], projector(random(1, 8, seed=2)))
    assert bool(found.filtered.isfinite().all())


# --- drawing


def test_a_prompt_without_triggers_is_drawn_as_it_is(pico: Model) -> None:
    plain = drawn(pico)
    with filtering(pico, alpha=1e6).applied(pico):
        assert torch.equal(drawn(pico), plain)
    with filtering(pico).applied(pico):
        assert not torch.allclose(drawn(pico), plain, atol=1e-3)
    assert torch.equal(drawn(pico), plain)


def test_the_empty_prompt_and_the_negative_one_stay(pico: Model) -> None:
    plain = drawn(pico, "")
    with filtering(pico).applied(pico):
        assert torch.equal(drawn(pico, ""), plain)
        told = drawn(pico, "", negative_prompt=["ghost"])
    assert torch.equal(told, drawn(pico, "", negative_prompt=["ghost"]))


def test_without_guidance_prompts_are_filtered_too(pico: Model) -> None:
    plain = drawn(pico, guidance_scale=1.0)
    with filtering(pico).applied(pico):
        assert not torch.allclose(drawn(pico, guidance_scale=1.0), plain, atol=1e-4)


def test_after_its_last_step_the_prompt_is_drawn_as_it_is(pico: Model) -> None:
    edit = filtering(pico, self_validation=True, most=0)
    condition = pico.condition([PROMPTS[0]] * 2)
    latents = random(1, *pico.latent_shape).repeat(2, 1, 1, 1)
    with torch.no_grad():
        plain = pico.predict(latents, 5, condition)
        with edit.applied(pico):
            condition = pico.condition([PROMPTS[0]] * 2)
            with drawing(pico):
                first, second = (pico.predict(latents, 5, condition) for _ in range(2))
    assert torch.equal(second, plain)
    assert torch.equal(first[:1], plain[:1])
    assert not torch.allclose(first[1:], plain[1:], atol=1e-5)


def test_the_negative_prompt_is_a_setting_that_the_released_program_has_on(pico: Model) -> None:
    both = filtering(pico, negative_prompt=True)
    assert guard(erase(pico, "ghost", "safree", fidelity="original")).negative
    assert guard(erase(pico, "ghost", "safree")).negative is None
    with filtering(pico).applied(pico):
        wanted = drawn(pico, negative_prompt=["ghost"])
    with both.applied(pico):
        assert torch.equal(drawn(pico), wanted)


def test_the_plain_pipeline_draws_what_expunge_draws(pico: Model) -> None:
    request = ImageRequest(case_number="0", prompt=PROMPTS[0], seed=3)
    for values in ({}, {"self_validation": True}, {"re_attention": "low"}):
        with filtering(pico, **values).applied(pico):
            [(_, picture)] = sample(pico, [request], SAMPLER)
            levels = drawn(pico, output_type="np")
        assert (torch.as_tensor(levels[0] * 255).round() - picture.float()).abs().max() <= 1


@pytest.mark.parametrize(
    "values", [{}, {"self_validation": True, "most": 2}, {"re_attention": "low"}]
)
def test_no_picture_depends_on_its_neighbours(pico: Model, values: dict[str, Any]) -> None:
    requests = [
        ImageRequest(case_number=str(n), prompt=prompt, seed=n) for n, prompt in enumerate(PROMPTS)
    ]
    with filtering(pico, **values).applied(pico):
        alone = [next(sample(pico, [one], SAMPLER))[1] for one in requests]
        for order in list(permutations(range(4)))[::7]:
            drawing_all = sample(pico, [requests[at] for at in order], SAMPLER)
            for at, (_, picture) in zip(order, drawing_all, strict=True):
                assert torch.equal(picture, alone[at])
        many, first = drawn(pico, PROMPTS[:3]), drawn(pico, PROMPTS[0])
    torch.testing.assert_close(many[:1], first, rtol=1e-3, atol=1e-4)


def test_as_many_pictures_are_drawn_side_by_side_as_without_it(pico: Model) -> None:
    lanes = _lanes(pico, (8, 8), _Texts(pico))
    with filtering(pico).applied(pico):
        assert _lanes(pico, (8, 8), _Texts(pico)) == lanes > 1


def test_a_saved_one_is_the_same(pico: Model, tmp_path: Path) -> None:
    edit = filtering(pico, negative_prompt=True, re_attention="high")
    edit.save(tmp_path / "edit.safetensors")
    loaded = Edit.load(tmp_path / "edit.safetensors")
    assert (loaded.id, loaded.provenance) == (edit.id, edit.provenance)
    assert guard(loaded).rule == guard(edit).rule
    assert guard(loaded).band == "high"
    with edit.applied(pico):
        wanted = drawn(pico)
    with loaded.applied(pico):
        assert torch.equal(drawn(pico), wanted)


def test_it_stands_beside_weights_gates_and_other_guards(pico: Model) -> None:
    plain, safree = drawn(pico), filtering(pico)
    sld = erase(pico, "ghost", "sld", preset="max")
    others = erase(pico, Concept(target="dog", anchor="man"), "uce")
    others = others + membrane(pico, Concept(target="cat"))
    found = []
    for order in permutations((safree, others, sld)):
        for edit in order:
            edit.apply(pico)
        found.append(drawn(pico))
        for edit in order[1:] + order[:1]:
            edit.revert(pico)
    for one in found[1:]:
        torch.testing.assert_close(one, found[0], rtol=1e-3, atol=1e-4)
    assert torch.equal(drawn(pico), plain)
    assert not any("forward" in vars(module) for module in pico.denoiser.modules())
    assert not pico.pipe.text_encoder._forward_hooks


def test_gradients_reach_the_prompt_through_the_filter(pico: Model) -> None:
    [text] = pico.read([PROMPTS[0]])
    latents = random(1, *pico.latent_shape)
    row = pico.text_encoders[0].table[text.ids[0, 4]].detach().clone()[None].requires_grad_()

    def gradient() -> Tensor:
        rows = pico.embed(text.replaced(row, torch.tensor([[4]])))
        [found] = torch.autograd.grad(pico.predict(latents, 5, rows).sum(), [row])
        return found

    plain = gradient()
    with filtering(pico).applied(pico):
        guarded = gradient()
        assert torch.equal(guarded, gradient())
    assert bool((guarded != 0).any())
    assert not torch.allclose(plain, guarded)


def test_rows_from_elsewhere_are_refused(pico: Model) -> None:
    strange = Condition(pico.condition(["a dog"]).rows + 1)
    latents = random(1, *pico.latent_shape)
    with filtering(pico).applied(pico), pytest.raises(ExpungeError, match="reads the tokens of a"):
        pico.predict(latents, 5, strange)


def test_what_it_reads_pushes_no_prompt_out_of_the_readers_memory(pico: Model, monkeypatch) -> None:
    monkeypatch.setattr(Reader, "LIMIT", 2)
    with filtering(pico).applied(pico):
        condition = pico.condition([PROMPTS[0]])
        latents = random(1, *pico.latent_shape)
        for _ in range(2):
            with torch.no_grad():
                pico.predict(latents, 5, Condition(condition.rows.clone()))


# --- latent re-attention


def test_features_that_stand_out_are_damped_and_others_stay() -> None:
    one, other = random(2, 3, 8, 8), random(2, 3, 8, 8, seed=1)
    torch.testing.assert_close(damped(one, one, 0.2), one, atol=1e-5, rtol=1e-5)
    changed = damped(one, other, 0.2)
    assert not torch.allclose(changed, one, atol=1e-3)
    torch.testing.assert_close(damped(one, other, 1.0), one, atol=1e-5, rtol=1e-5)
    assert changed.square().sum() < one.square().sum()


@pytest.mark.parametrize("band", ["low", "high", "plain"])
def test_re_attention_changes_filtered_prompts_alone(pico: Model, band: str) -> None:
    with filtering(pico).applied(pico):
        without = drawn(pico)
    with filtering(pico, re_attention=band).applied(pico):
        assert not torch.allclose(drawn(pico), without, atol=1e-4)
        empty = drawn(pico, "")
    assert torch.equal(empty, drawn(pico, ""))


# --- settings


def test_a_model_with_several_text_encoders_is_refused(tmp_path: Path) -> None:
    model = SDXL(pipeline(tmp_path))
    with pytest.raises(Unsupported, match="safree is for sd models so far"):
        erase(model, "ghost", "safree")


def test_the_released_program_has_no_threshold_for_one_token() -> None:
    with pytest.raises(ExpungeError, match='alone: only with fidelity="corrected"'):
        configured("safree", fidelity="original", alone=0.2)


def test_the_command_line_makes_one(pico_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "edit.safetensors"
    command = ["erase", "--model", str(pico_folder), "--concept", "ghost", "--method", "safree"]
    assert main([*command, "--set", "preset=artist", "--output", str(output)]) == 0
    edit = Edit.load(output)
    assert guard(edit).rule.slope == 3.5
    model = load(pico_folder, device="cpu")
    with edit.applied(model):
        assert bool(drawn(model).isfinite().all())
