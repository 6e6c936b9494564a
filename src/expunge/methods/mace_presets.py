"""The settings that MACE was released with, by task and number of concepts."""

from collections.abc import Mapping
from typing import Any, Literal

Preset = Literal[
    "object-automobile",
    "object-bird",
    "object-ship",
    "celebrity-1",
    "celebrity-5",
    "celebrity-10",
    "celebrity-100",
    "artist-100",
    "unsafe-4",
]


def _preset(
    lamb: float, scale: float, weight: float, lr: float, steps: int, focused: bool
) -> Mapping[str, Any]:
    return {
        "lamb": lamb,
        "train_preserve_scale": scale,
        "fuse_preserve_scale": scale,
        "preserve_weight": weight,
        "lr": lr,
        "iterations": steps,
        "focal": focused,
    }


PRESETS: Mapping[Preset, Mapping[str, Any]] = {
    "object-automobile": _preset(1e2, 0, 0, 1e-5, 50, True),
    "object-bird": _preset(1e1, 0, 0, 1e-5, 50, True),
    "object-ship": _preset(1e3, 0, 0, 1e-5, 50, True),
    "celebrity-1": _preset(0, 1e-4, 8e3, 1e-4, 50, True),
    "celebrity-5": _preset(0, 1e-4, 5e4, 1e-4, 50, True),
    "celebrity-10": _preset(0, 1e-4, 8e4, 1e-4, 50, True),
    "celebrity-100": _preset(0, 1e-4, 2e5, 1e-4, 50, True),
    "artist-100": _preset(0, 1e-4, 8e4, 1e-4, 50, True),
    "unsafe-4": _preset(0, 7e-7, 0, 1e-5, 120, False),
}
"""The released settings by task and number of concepts, for Stable Diffusion 1.4."""
