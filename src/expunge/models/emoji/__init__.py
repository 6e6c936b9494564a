"""The bundled model: a small latent-diffusion model that draws emoji, and the judges for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from expunge.models.emoji.vocabulary import Catalog

__all__ = ["catalog", "pipeline_path", "prior_folder"]


def pipeline_path() -> Path:
    """The directory to give ``StableDiffusionPipeline.from_pretrained``."""
    return Path(__file__).parent / "pipe"


def prior_folder() -> Path:
    """The folder of the sums of everyday prompts for this model's text encoder."""
    return Path(__file__).parent / "prior"


def catalog() -> Catalog:
    """The objects, styles, backgrounds and caption templates of the model."""
    # Imported here so that naming the model costs neither pydantic nor yaml.
    from expunge.models.emoji.vocabulary import catalog as load

    return load()
