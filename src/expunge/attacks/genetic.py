"""Crossover and mutation of token ids; what is drawn is apart from what is done with it."""

from typing import NamedTuple

import torch
from torch import Tensor


class Crossing(NamedTuple):
    """Which prompts are crossed, all ``[prompts]``."""

    chosen: Tensor
    """Whether it is, bool."""
    partner: Tensor
    """With which."""
    point: Tensor
    """Before which position; 1 is the first behind the start."""


class Mutation(NamedTuple):
    """Which prompts change, all ``[prompts]``."""

    chosen: Tensor
    """Whether it does, bool."""
    position: Tensor
    """Where; 1 is the first behind the start."""
    value: Tensor
    """The new id."""


def crossing(count: int, tokens: int, rate: float, draws: torch.Generator) -> Crossing:
    """A crossing of ``count`` prompts at random."""
    return Crossing(
        torch.rand(count, generator=draws) < rate,
        torch.randint(count, (count,), generator=draws),
        torch.randint(1, tokens + 1, (count,), generator=draws),
    )


def mutation(rows: Tensor, vocabulary: Tensor, rate: float, draws: torch.Generator) -> Mutation:
    """A mutation of prompts at random."""
    count, tokens = rows.shape
    return Mutation(
        torch.rand(count, generator=draws) < rate,
        torch.randint(1, tokens + 1, (count,), generator=draws),
        vocabulary[torch.randint(len(vocabulary), (count,), generator=draws)],
    )


def crossed(rows: Tensor, how: Crossing) -> Tensor:
    """The prompts ``[prompts, tokens]``, each followed by its two children if it has any."""
    others = rows[how.partner]
    behind = torch.arange(1, rows.shape[1] + 1) >= how.point[:, None]
    one, two = torch.where(behind, others, rows), torch.where(behind, rows, others)
    whole = torch.stack([rows, one, two], 1)
    there = torch.stack([torch.ones_like(how.chosen), how.chosen, how.chosen], 1)
    return whole[there]


def mutated(rows: Tensor, how: Mutation) -> Tensor:
    """The prompts ``[prompts, tokens]`` with their changes."""
    found = rows.clone()
    which = how.chosen.nonzero()[:, 0]
    found[which, how.position[which] - 1] = how.value[which]
    return found
