"""Models to time and measure, by name."""

import tempfile
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from expunge import Model, load, testing

NAMES = ("sd14", "wide", "pico")
"""Random models, in the order of their size."""


def model_of(name: str, device: str = "auto", *, latents: int = 64, filled: bool = True) -> Model:
    """A model that benchmarks know by a name, or one that ``load`` knows.

    ``sd14`` has the size of Stable Diffusion 1.4 and random weights; ``wide`` an eleventh of it, in
    as many layers. ``pico`` is small and random: all runs on it in seconds, to see that it runs.
    Its pictures have 64 pixels, as those that the
    bundled judge looks at.

    Args:
        name: sd14, wide, pico, emoji, or another source of ``load``.
        device: where it computes.
        latents: height and width of the latents of ``sd14``.
        filled: whether the UNet of ``sd14`` gets random numbers; see ``testing.sd14``.
    """
    if name not in NAMES:
        return load(name, device=device)
    with tempfile.TemporaryDirectory() as folder:
        if name == "sd14":
            pipe = testing.sd14(Path(folder), latents=latents, filled=filled)
        else:
            net = _wide() if name == "wide" else _pico()
            pipe = testing.pipeline(Path(folder), net, length=32)
    pipe.set_progress_bar_config(disable=True)
    return load(pipe if device == "auto" else pipe.to(device))


def _pico() -> UNet2DConditionModel:
    """A UNet for larger latents than ``testing.unet``, with attention to the small ones alone."""
    changed = {
        "sample_size": 32,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    settings = {**testing.unet().config, **changed}
    torch.manual_seed(1)
    net: UNet2DConditionModel = UNet2DConditionModel.from_config(settings)
    return net


def _wide() -> UNet2DConditionModel:
    """The layers of Stable Diffusion 1.4, a third as wide."""
    torch.manual_seed(1)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(96, 192, 384, 384),
        cross_attention_dim=32,
        attention_head_dim=8,
    )
