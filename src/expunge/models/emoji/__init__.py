"""The bundled model: a small latent-diffusion model that draws emoji, and the judges for it."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from expunge.models.emoji.vocabulary import Catalog

__all__ = ["catalog", "denoiser_config", "pipeline_path", "prior_folder"]


def pipeline_path() -> Path:
    """The directory to give ``StableDiffusionPipeline.from_pretrained``."""
    return Path(__file__).parent / "pipe"


@cache
def denoiser_config() -> dict[str, Any]:
    """What its denoiser is built from, without diffusers' own remarks."""
    text = (pipeline_path() / "unet" / "config.json").read_text(encoding="utf-8")
    return {name: value for name, value in json.loads(text).items() if not name.startswith("_")}


def prior_folder() -> Path:
    """The folder of the sums of everyday prompts for this model's text encoder."""
    return Path(__file__).parent / "prior"


def catalog() -> Catalog:
    """The objects, styles, backgrounds and caption templates of the model."""
    # Imported here so that naming the model costs neither pydantic nor yaml.
    from expunge.models.emoji.vocabulary import catalog as load

    return load()
