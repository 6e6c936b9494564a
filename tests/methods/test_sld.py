"""SLD: with nothing to add it is plain guidance, and no picture depends on another."""

from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from expunge import Concept, Edit, ExpungeError, Model, erase, load
from expunge.attacks.sld_rule import RULES
from expunge.cli import main
from expunge.edits.drawings import drawing
from expunge.edits.safe_guidance import Rule, SafeGuidance
from expunge.generation import ImageRequest, Sampler, sample
from expunge.generation.sampling import _lanes, _Texts
from expunge.method.presets import presets
from expunge.methods import configured
from expunge.methods.sld import SLD
from expunge.models import Condition
from expunge.models.sdxl import SDXL
from expunge.testing import membrane
from tiny_sdxl import pipeline

PROMPTS = ["a dog", "a picture of ghost", "santa claus", "an image of a cat"]
SAMPLER = Sampler(scheduler="native", steps=4, guidance_scale=5)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def drawn(model: Model, prompt: str | list[str] = "a dog", **options: Any) -> Tensor:
    model.pipe.set_progress_bar_config(disable=True)
    many = [prompt] if isinstance(prompt, str) else prompt
    noise = [torch.Generator().manual_seed(3 + at) for at in range(len(many))]
    given = {"num_inference_steps": 4, "guidance_scale": 5.0, "output_type": "latent", **options}
    latents: Tensor = model.pipe(many, generator=noise, **given).images
    return latents


def sampled(model: Model, prompts: list[str]) -> dict[str, Tensor]:
    requests = [
        ImageRequest(case_number=str(n), prompt=prompt, seed=PROMPTS.index(prompt) + 3)
        for n, prompt in enumerate(prompts)
    ]
    return {request.prompt: picture for request, picture in sample(model, requests, SAMPLER)}


def strong(model: Model, words: str = "ghost", **values: Any) -> Edit:
    return erase(model, words, "sld", **{"preset": "max", **values})


# --- the rule


@pytest.mark.parametrize("preset", list(presets(SLD)))
def test_without_a_scale_it_is_plain_guidance(preset: str) -> None:
    method = configured("sld", preset=preset)
    rule, before = method.rule()._replace(scale=0.0), torch.zeros(2, 4, 3, 3)
    for number in range(20):
        predicted = [random(2, 4, 3, 3, seed=3 * number + at) for at in range(3)]
        correction = rule.correction(*predicted, before)
        before = rule.remembered(before, correction)
        assert not correction.any()


def test_the_correction_turns_away_where_the_prompt_is_like_the_concept() -> None:
    rule = Rule(0, 2.0, 0.0, 0.0, 0.0)
    empty, prompted, concept = (
        torch.tensor([value]) for value in ([0.0, 0, 0], [1.0, 1, 1], [3.0, 0.5, 1.2])
    )
    found = rule.correction(empty, prompted, concept, torch.zeros(1, 3))
    torch.testing.assert_close(found, torch.tensor([[3.0, 0.0, 0.4 * 1.2]]))


def test_weak_remembers_nothing_and_others_do_during_the_warm_up() -> None:
    weak, medium = (configured("sld", preset=name).rule() for name in ("weak", "medium"))
    assert not weak.remembers
    assert medium.remembers
    assert [medium.acts(number, torch.tensor(900)) for number in (9, 10)] == [False, True]
    apart = random(1, 4, 2, 2)
    kept = medium.remembered(torch.zeros_like(apart), apart)
    torch.testing.assert_close(kept, 0.6 * apart)


def test_there_are_four_presets_and_the_weak_one_of_diffusers() -> None:
    found = {name: preset.settings for name, preset in presets(SLD).items()}
    assert list(found) == ["weak", "weak-diffusers", "medium", "strong", "max"]
    assert (found["weak"]["scale"], found["weak-diffusers"]["scale"]) == (200, 20)
    for name, rule in RULES.items():
        numbers = ("warmup", "scale", "threshold", "momentum_scale", "momentum_beta")
        assert tuple(rule)[:5] == tuple(found[name][number] for number in numbers)
    assert configured("sld") == configured("sld", preset="medium").model_copy(
        update={"preset": None}
    )


# --- drawing


def test_warm_up_without_momentum_draws_the_plain_picture_and_asks_for_no_concept(pico) -> None:
    plain = drawn(pico)
    with strong(pico, preset="weak").applied(pico):  # its warm-up is longer than the drawing
        assert torch.equal(drawn(pico), plain)
    with strong(pico).applied(pico):
        assert not torch.allclose(drawn(pico), plain, atol=1e-3)
        assert torch.equal(drawn(pico), drawn(pico))
    assert torch.equal(drawn(pico), plain)


def test_without_guidance_nothing_changes(pico: Model) -> None:
    request = ImageRequest(case_number="0", prompt="a dog", seed=3, guidance_scale=1)
    [(_, wanted)] = sample(pico, [request], SAMPLER)
    plain = drawn(pico, guidance_scale=1.0)
    with strong(pico).applied(pico):
        assert torch.equal(drawn(pico, guidance_scale=1.0), plain)
        [(_, picture)] = sample(pico, [request], SAMPLER)
    assert torch.equal(picture, wanted)


def test_the_plain_pipeline_draws_what_expunge_draws(pico: Model) -> None:
    with strong(pico).applied(pico):
        [(_, picture)] = sample(
            pico, [ImageRequest(case_number="0", prompt="a dog", seed=3)], SAMPLER
        )
        levels = drawn(pico, output_type="np")
    assert (torch.as_tensor(levels[0] * 255).round() - picture.float()).abs().max() <= 1


def test_no_picture_depends_on_its_neighbours_or_on_those_before(pico: Model) -> None:
    with strong(pico).applied(pico):
        alone = {prompt: sampled(pico, [prompt])[prompt] for prompt in PROMPTS}
        for order in list(permutations(PROMPTS))[::5]:
            together = sampled(pico, list(order))
            assert all(torch.equal(together[prompt], alone[prompt]) for prompt in PROMPTS)
        side_by_side = drawn(pico, PROMPTS[:3])
        first = drawn(pico, PROMPTS[0])
    torch.testing.assert_close(side_by_side[:1], first, rtol=1e-3, atol=1e-4)


def test_threads_draw_with_one_edit_side_by_side(pico: Model) -> None:
    edit = strong(pico)
    edit.apply(pico)
    alone = [drawn(pico, prompt) for prompt in PROMPTS]

    def latents(at: int) -> Tensor:
        condition = Condition.cat([pico.unconditional(), pico.condition([PROMPTS[at % 4]])])
        scheduler = pico.process.scheduler("native", 4)
        draws = torch.Generator().manual_seed(3)
        now = torch.randn((1, *pico.latent_shape), generator=draws) * scheduler.init_noise_sigma
        with torch.no_grad():
            for time in scheduler.timesteps:
                empty, prompted = pico.predict(now.repeat(2, 1, 1, 1), time, condition).chunk(2)
                guided = empty + 5.0 * (prompted - empty)
                now = scheduler.step(guided, time, now).prev_sample
        return now

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(latents, range(12)))
    edit.revert(pico)
    for at, one in enumerate(found):
        torch.testing.assert_close(one, alone[at % 4], rtol=1e-4, atol=1e-5)


def test_as_many_pictures_are_drawn_side_by_side_as_without_it(pico: Model) -> None:
    lanes = _lanes(pico, (8, 8), _Texts(pico))
    with strong(pico).applied(pico):
        assert _lanes(pico, (8, 8), _Texts(pico)) == lanes > 1


def test_a_saved_one_is_the_same(pico: Model, tmp_path: Path) -> None:
    edit = strong(pico)
    edit.save(tmp_path / "edit.safetensors")
    loaded = Edit.load(tmp_path / "edit.safetensors")
    assert (loaded.id, loaded.provenance) == (edit.id, edit.provenance)
    assert loaded.components[0].payload.rule == edit.components[0].payload.rule
    assert loaded.provenance[0].settings["preset"] == "max"
    with edit.applied(pico):
        wanted = drawn(pico)
    with loaded.applied(pico):
        assert torch.equal(drawn(pico), wanted)


def test_it_stands_beside_weights_gates_and_other_guards(pico: Model) -> None:
    plain, sld = drawn(pico), strong(pico)
    negative = erase(pico, "santa claus", "negative-prompt")
    others = erase(pico, Concept(target="dog", anchor="man"), "uce") + membrane(
        pico, Concept(target="cat")
    )
    with (others + sld).applied(pico):
        wanted = drawn(pico, negative_prompt=["santa claus"])
    for order in permutations((sld, others, negative)):
        for edit in order:
            edit.apply(pico)
        torch.testing.assert_close(drawn(pico), wanted, rtol=1e-3, atol=1e-4)
        for edit in order[1:] + order[:1]:
            edit.revert(pico)
    assert torch.equal(drawn(pico), plain)


def test_two_turn_away_from_two_concepts(pico: Model) -> None:
    one, two = strong(pico), strong(pico, "santa claus")
    with one.applied(pico):
        first = drawn(pico)
    with (one + two).applied(pico):
        both = drawn(pico)
    assert not torch.allclose(first, both, atol=1e-3)
    assert bool(both.isfinite().all())


def test_gradients_go_through_several_steps(pico: Model) -> None:
    """To the prompt, and through what is remembered."""

    def loss(rows: Tensor, share: float) -> Tensor:
        prompted = Condition(torch.cat([pico.unconditional().rows, rows]))
        latents = random(1, *pico.latent_shape).repeat(2, 1, 1, 1)
        with drawing(pico, step=10):
            first = pico.predict(latents, 700, prompted)
            last = pico.predict(latents, 500, Condition(prompted.rows.detach()))
        return share * first.sum() + last[1].sum()

    rows = pico.encode(["a dog"]).requires_grad_()
    with strong(pico).applied(pico):
        [remembered] = torch.autograd.grad(loss(rows, 0.0), [rows])
        [whole] = torch.autograd.grad(loss(rows, 1.0), [rows])
    assert bool((remembered != 0).any())
    assert not torch.allclose(remembered, whole)


def test_sdxl_has_it_too(tmp_path: Path) -> None:
    model = SDXL(pipeline(tmp_path))
    plain = drawn(model)
    with strong(model).applied(model):
        assert not torch.allclose(drawn(model), plain, atol=1e-3)
        [(_, picture)] = sample(
            model, [ImageRequest(case_number="0", prompt="a dog", seed=3)], SAMPLER
        )
        levels = drawn(model, output_type="np")
    assert (torch.as_tensor(levels[0] * 255).round() - picture.float()).abs().max() <= 1


# --- settings


def test_what_cant_act_is_refused(pico: Model) -> None:
    with pytest.raises(ExpungeError, match="nothing would change for ghost"):
        strong(pico, scale=0)
    with pytest.raises(ExpungeError, match="below 1 the released program does nothing"):
        configured("sld", fidelity="original", scale=0.5)
    with pytest.raises(ExpungeError, match='warmup_by: only with fidelity="original"'):
        configured("sld", warmup_by="time")


def test_all_phrases_are_one_text(pico: Model) -> None:
    edit = erase(pico, [Concept(target="ghost", synonyms=("santa",)), "dog"], "sld")
    payload = edit.components[0].payload
    assert isinstance(payload, SafeGuidance)
    assert torch.equal(payload.concept.rows, pico.encode(["ghost, santa, dog"]))


def test_the_command_line_makes_one(pico_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "edit.safetensors"
    command = ["erase", "--model", str(pico_folder), "--concept", "ghost", "--method", "sld"]
    assert main([*command, "--set", "preset=strong", "--output", str(output)]) == 0
    edit = Edit.load(output)
    assert edit.components[0].payload.rule[:2] == (7, 2000)
    model = load(pico_folder, device="cpu")
    with edit.applied(model):
        assert bool(drawn(model).isfinite().all())
