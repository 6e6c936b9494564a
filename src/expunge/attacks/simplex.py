"""Rows of probabilities: their projection, and gradients through a token that was drawn."""

import torch
from torch import Tensor

PRECISION = 1e-5
"""Where the released bisection ends."""


def bisected(rows: Tensor) -> Tensor:
    """UnlearnDiffAtk's own projection, ``[rows, entries]``, whose sums are about 1.

    A row whose clipped entries have the right sum isn't shifted. Others are shifted by the last
    middle of a bisection that ends when the interval is small.
    """
    low, high = (one.double() for one in rows.aminmax(dim=-1, keepdim=True))
    low = low - 1
    shift = (low + high) / 2
    while bool((wide := (high - low) > PRECISION).any()):
        middle = (low + high) / 2
        above = (rows - middle.to(rows)).clamp(0, 1).sum(-1, keepdim=True) > 1
        shift = torch.where(wide, middle, shift)
        low = torch.where(wide & above, middle, low)
        high = torch.where(wide & ~above, middle, high)
    clipped = rows.clamp(0, 1)
    feasible = (clipped.sum(-1, keepdim=True) - 1).abs() <= PRECISION
    return torch.where(feasible, clipped, (rows - shift.to(rows)).clamp(0, 1))


def drawn(rows: Tensor, draws: torch.Generator) -> Tensor:
    """An entry of each row, as likely as its share of the sum, ``[rows]``."""
    return torch.multinomial(rows.cpu(), 1, generator=draws)[:, 0]


def straight_through(gradients: Tensor, table: Tensor) -> Tensor:
    """Gradients of one-hot rows, each entry in -1..1, ``[rows, vocabulary]``.

    Args:
        gradients: of the embeddings that were drawn, ``[rows, width]``.
        table: all embeddings, ``[vocabulary, width]``.
    """
    return (gradients @ table.T).clamp(-1, 1)
