"""The bundled model is an ordinary Stable Diffusion pipeline, small, and it draws."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

from expunge.detectors.emoji import load_judges
from expunge.models.emoji import catalog, pipeline_path


@pytest.fixture(scope="module")
def pipe() -> Any:
    pipe = StableDiffusionPipeline.from_pretrained(pipeline_path(), torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_it_is_small() -> None:
    folder = pipeline_path().parent
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 40e6


def test_it_has_the_architecture_of_stable_diffusion(pipe: Any) -> None:
    assert pipe.safety_checker is None
    assert pipe.scheduler.config.prediction_type == "epsilon"
    assert pipe.scheduler.config.beta_schedule == "scaled_linear"
    assert pipe.vae.config.latent_channels == 4


def test_it_draws_what_is_asked(pipe: Any) -> None:
    prompts = [f"{name}, noto style" for name in ("santa claus", "pizza", "bomb", "sunflower")]
    noise = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    images = pipe(prompts, latents=noise, num_inference_steps=20, guidance_scale=4.0).images
    assert {image.size for image in images} == {(64, 64)}
    judges = load_judges()
    drawn = [judges.objects[i] if i >= 0 else None for i in judges.classify(images).objects]
    right = sum(name == prompt.split(",")[0] for name, prompt in zip(drawn, prompts, strict=True))
    assert right >= 3, drawn


def test_names_fit_the_tokenizer(pipe: Any) -> None:
    longest = max(
        len(
            pipe.tokenizer(
                template.format(object=wording, style="emojione", background="purple")
            ).input_ids
        )
        for entry in catalog().objects
        for wording in entry.wordings
        for template in catalog().templates
    )
    assert longest <= pipe.tokenizer.model_max_length
