"""SAFREE's latent re-attention: skip features of the filtered prompt, damped where they stand out.

A UNet draws each picture for the filtered prompt and for the prompt as it is. In the spectrum of
skip features, a coefficient of the filtered branch that is larger than the other branch's (for high
frequencies: smaller in size) is multiplied by a small number (Yoon et al., ICLR 2025, section 3.3;
the filter is that of FreeU, Si et al., CVPR 2024). Low frequencies are the 2 x 2 coefficients
around the centre.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from expunge.models.skips import Skip

Band = Literal["off", "low", "high", "plain"]
"""What is damped: nothing, low frequencies that stand out, high ones that stand out, or all low
frequencies of all branches."""

WINDOW = 1
"""Coefficients on each side of the centre that are low frequencies."""
ALIKE = 1e-3
"""Coefficients that differ by less than this share of the channel's largest one are the same: the
features before the first look at the prompt are, but for rounding."""
SCALES = (0.9, 0.2)
"""The factor for the deepest features, and for those with half of their channels."""


def damped(
    safe: Tensor, original: Tensor, scale: float, band: Band = "low", replaced: bool = False
) -> Tensor:
    """Features of the filtered branch with part of their spectrum damped.

    Args:
        safe: of the filtered prompt, ``[batch, channels, height, width]``.
        original: of the prompt as it is.
        scale: what coefficients are multiplied by.
        band: which coefficients.
        replaced: whether coefficients become ``scale`` itself, however little they stand out, as
            in the released program.

    Returns:
        Shaped like ``safe``.
    """
    mine, other = _spectrum(safe), _spectrum(original)
    size = other.abs().amax((-2, -1), keepdim=True)
    least = 0.0 if replaced else ALIKE * size
    low = torch.zeros(safe.shape[-2:], dtype=torch.bool, device=safe.device)
    rows, columns = (slice(side // 2 - WINDOW, side // 2 + WINDOW) for side in safe.shape[-2:])
    low[rows, columns] = True
    if band == "plain":
        chosen = low.expand(mine.shape)
    elif band == "high":
        chosen = ~low & (other.real.abs() - mine.real.abs() > least)
    else:
        chosen = low & (mine.real - other.real >= least)
    constant = torch.full_like(mine, scale)
    changed = torch.where(chosen, constant if replaced and band != "plain" else mine * scale, mine)
    back: Tensor = torch.fft.ifft2(torch.fft.ifftshift(changed, dim=(-2, -1))).real
    return back.to(safe.dtype)


def _spectrum(features: Tensor) -> Tensor:
    """With frequency 0 in the middle."""
    spectrum: Tensor = torch.fft.fftshift(torch.fft.fft2(features.float()), dim=(-2, -1))
    return spectrum


class Comparing:
    """Remembers the skip features of prompts as they are, and damps those of filtered ones.

    Args:
        uses: which prompts are filtered, ``[prompts]`` bool.
        rows: where they are in a batch.
        band: what is damped.
        replaced: as in ``damped``.
    """

    def __init__(self, uses: Tensor, rows: slice, band: Band, replaced: bool) -> None:
        self.uses = uses
        self.rows = rows
        self.damp: Callable[[Tensor, Tensor, float], Tensor] = lambda safe, original, scale: damped(
            safe, original, scale, band, replaced
        )
        self.seen: dict[tuple[int, int], Tensor] = {}

    def remember(self, skip: Skip) -> Tensor:
        """Of a batch of the prompts as they are."""
        self.seen[skip.place] = skip.features
        return skip.features

    def change(self, skip: Skip) -> Tensor:
        """Of a batch with the filtered prompts."""
        if skip.depth >= len(SCALES):
            return skip.features
        safe = skip.features[self.rows]
        changed = self.damp(safe, self.seen[skip.place], SCALES[skip.depth])
        uses = self.uses.to(safe.device).view(-1, 1, 1, 1)
        before = skip.features[: len(skip.features) - len(safe)]
        return torch.cat([before, torch.where(uses, changed, safe)])
