"""The models that Expunge edits, seen through one seam; ``load`` makes one.

A ``Model`` is a view of a diffusers pipeline: text encoders, denoiser, process, latents, roles. A
``Condition`` is what a denoiser is told of prompts, a ``Process`` how its noise works.
"""

from expunge.models.condition import Condition
from expunge.models.loading import FAMILIES, load
from expunge.models.model import Model
from expunge.models.process import Diffusion, Flow, Process
from expunge.models.text import TextEncoder, TextInput
from expunge.models.window import Cut

__all__ = [
    "FAMILIES",
    "Condition",
    "Cut",
    "Diffusion",
    "Flow",
    "Model",
    "Process",
    "TextEncoder",
    "TextInput",
    "load",
]
