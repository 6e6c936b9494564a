"""SDXL beside diffusers' own pipeline."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMPipeline, StableDiffusionXLPipeline

from expunge import Edit, ExpungeError, Policy, erase, load
from expunge.doctor.costs import cost, measure
from expunge.errors import Unsupported
from expunge.generation import ImageRequest, Sampler, sample
from expunge.methods import configured
from expunge.models import Condition
from expunge.models.sdxl import SDXL
from expunge.training.trajectories import denoise, native
from tiny_sdxl import pipeline

PROGRAM: dict[str, Any] = {"fidelity": "original", "variant": "diffusers-sdxl"}


@pytest.fixture
def tiny(tmp_path: Path) -> SDXL:
    return SDXL(pipeline(tmp_path))


def drawn(pipe: StableDiffusionXLPipeline, noise: torch.Tensor) -> torch.Tensor:
    """Final latents as the pipeline itself draws them."""
    latents: torch.Tensor = pipe(
        "a dog", num_inference_steps=4, guidance_scale=3.0, latents=noise, output_type="latent"
    ).images
    return latents


@pytest.mark.parametrize("zeros", [True, False])
def test_conditions_draw_what_the_pipeline_draws(tmp_path: Path, zeros: bool) -> None:
    """Both text encoders, the pooled vector, the sizes, and what guidance leads away from."""
    model = SDXL(pipeline(tmp_path, zeros=zeros))
    noise = torch.randn(1, *model.latent_shape)
    scheduler = native(model.process, 4)
    *_, last = denoise(
        model.predict,
        scheduler,
        noise * scheduler.init_noise_sigma,
        model.condition(["a dog"]),
        model.unconditional(),
        guidance_scale=3.0,
        timesteps=scheduler.timesteps,
    )
    assert torch.allclose(last.after, drawn(model.pipe, noise), atol=1e-4)
    assert bool(model.unconditional().rows.any()) != zeros


def test_sample_draws_what_the_pipeline_draws(tmp_path: Path) -> None:
    model = load(pipeline(tmp_path))
    request = ImageRequest(case_number="0", prompt="a dog", seed=7)
    [(_, ours)] = sample(model, [request], Sampler(scheduler="native", steps=4, guidance_scale=3))
    theirs = model.pipe(
        "a dog", num_inference_steps=4, guidance_scale=3.0, output_type="np",
        generator=torch.Generator().manual_seed(7),
    ).images[0]  # fmt: skip
    levels = torch.from_numpy(theirs * 255).round()
    assert (levels - ours.float()).abs().max() <= 1


def test_the_pooled_vector_is_not_among_the_keys_and_values(tiny: SDXL) -> None:
    condition = tiny.condition(["a dog", ""])
    assert (condition.rows.shape, condition.pooled.shape) == ((2, 16, 32), (2, 12))
    assert torch.equal(condition.rows, tiny.encode(["a dog", ""]))
    latents = torch.zeros(2, 4, 8, 8)
    with torch.no_grad():
        other = tiny.predict(latents, 1, Condition(condition.rows, -condition.pooled))
        assert not torch.allclose(tiny.predict(latents, 1, condition), other)


def test_the_sizes_follow_from_the_latents_unless_they_are_said(tiny: SDXL) -> None:
    condition, latents = tiny.condition(["a dog"]), torch.zeros(1, 4, 8, 4)
    sizes = [torch.tensor([each]) for each in ([16.0, 8, 0, 0, 16, 8], [16.0, 16, 0, 0, 16, 16])]
    with torch.no_grad():
        plain = tiny.predict(latents, 1, condition)
        said, other = (
            tiny.predict(
                latents, 1, Condition(condition.rows, condition.pooled, {"time_ids": each})
            )
            for each in sizes
        )
    assert torch.equal(plain, said)
    assert not torch.allclose(plain, other)


def test_every_network_is_part_of_the_fingerprint(tiny: SDXL) -> None:
    before = tiny.fingerprint()
    with torch.no_grad():
        tiny.pipe.text_encoder_2.text_projection.weight[0, 0] += 0.1
    assert tiny.fingerprint() != before


def test_the_released_program_makes_an_edit_that_the_pipeline_shows(
    tiny: SDXL, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {**PROGRAM, "iterations": 3, "num_inference_steps": 4, "lr": 1e-2}
    noise = torch.randn(1, *tiny.latent_shape)
    base = drawn(tiny.pipe, noise)
    edit = erase(tiny, "ghost", "esd", checkpoints=tmp_path / "run", **settings)
    assert edit.id == erase(tiny, "ghost", "esd", **settings).id
    edit.save(tmp_path / "edit.safetensors")
    assert set(edit.names) == {n for n in tiny.select("cross_attention") if "norm" not in n}
    with Edit.load(tmp_path / "edit.safetensors").applied(tiny):
        assert not torch.allclose(drawn(tiny.pipe, noise), base, atol=1e-3)
    assert torch.equal(drawn(tiny.pipe, noise), base)


def test_what_is_not_there_yet_is_refused(tiny: SDXL) -> None:
    parts = {"unet": tiny.pipe.unet, "scheduler": tiny.pipe.scheduler}
    with pytest.raises(
        Unsupported,
        match="is a DDIMPipeline; known are StableDiffusionInpaintPipeline, StableDiffusionP",
    ):
        load(DDIMPipeline(**parts))
    with pytest.raises(ExpungeError, match="variant: diffusers-sd isn't for models of family sdxl"):
        erase(tiny, "ghost", "esd", fidelity="original", variant="diffusers-sd")
    with pytest.raises(Unsupported, match="has 2 text encoders"):
        tiny.listen(lambda rows, ids: None)


def test_a_method_of_another_family_is_refused_wherever_it_would_run(tiny: SDXL) -> None:
    with pytest.raises(Unsupported, match="uce is for sd models so far"):
        erase(tiny, "ghost", "uce")
    with pytest.raises(Unsupported, match="uce is for sd models so far"):
        cost(tiny, Policy.of("ghost"), configured("uce"), measure(tiny))


def test_the_first_rows_are_those_of_the_whole_window(tiny: SDXL) -> None:
    prompts = ["a photo of a dog", "cat", "a photo of a dog"]
    found = tiny.encode_beginnings(prompts, 2)
    assert [len(rows) for rows in found] == [tiny.last_token(p) + 4 for p in prompts]
    for rows, whole in zip(found, tiny.encode(prompts), strict=True):
        assert torch.allclose(rows, whole[: len(rows)], atol=1e-5)
