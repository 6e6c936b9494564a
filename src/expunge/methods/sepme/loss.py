"""The loss of SepME, part by part, and the rule that ends its training."""

from collections.abc import Iterable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from expunge.models import Condition
from expunge.models.calls import Answer

FIRST_TEST = 12
"""The first step in which the stopping rule is tested."""


def predictions(
    predict: Answer, latents: Tensor, timestep: Tensor, concept: Condition, empty: Condition
) -> tuple[Tensor, Tensor]:
    """``f(x, t, c)`` and ``f(x, t, a)``, shaped like ``latents`` ``[batch, ...]``, in one pass."""
    twice = torch.cat([latents, latents]), timestep.repeat(2)
    both = predict(*twice, Condition.cat([concept, empty])).chunk(2)
    return both[0], both[1]


def direction(student: Tensor, frozen: Tensor) -> Tensor:
    """``D = mean(r' r)`` of each row of ``[batch, ...]``; ``[batch]``."""
    return (student * frozen).flatten(1).mean(1)


def weight_term(changes: Iterable[Tensor]) -> Tensor:
    """``R``: the L1 norm of a tensor, averaged over the tensors; a scalar."""
    return torch.stack([change.abs().sum() for change in changes]).mean()


def momentum(directions: Iterable[float]) -> list[float]:
    """``m_0 = D_0, m_i = 0.9 m_(i-1) + 0.1 D_i``, one for each step."""
    return list(accumulate(directions, lambda so_far, new: 0.9 * so_far + 0.1 * new))


def settled(directions: Sequence[float], threshold: float) -> bool:
    """The stopping rule: at least ``FIRST_TEST`` steps, and ``m`` below the threshold."""
    return len(directions) >= FIRST_TEST and momentum(directions)[-1] < threshold
