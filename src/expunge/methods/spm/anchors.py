"""What a membrane must leave alone in training: embeddings in all directions."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

Split = Literal["released", "all"]
"""Which of the anchors count."""


def noise_anchors(draws: torch.Generator, target: Tensor, count: int) -> Tensor:
    """Embeddings ``[count, rows, width]`` in all directions, away from ``target`` rather than near.

    A direction is taken with a probability of 1 less its cosine with the target; its length is
    0.8 to 1.2 times the target's.
    """
    goal = target.detach().float().flatten().cpu()
    taken: list[Tensor] = []
    while len(taken) < count:
        direction = normalize(torch.randn(len(goal), generator=draws), dim=0)
        chance = 1 - direction @ normalize(goal, dim=0)
        if float(torch.rand((), generator=draws)) < chance:
            taken.append(direction)
    lengths = (0.8 + 0.4 * torch.rand(count, 1, generator=draws)) * goal.norm()
    found: Tensor = lengths * (torch.stack(taken) if taken else goal.new_zeros(0, len(goal)))
    return found.reshape(count, *target.shape).to(target)


def acting(anchors: Tensor, empty: Tensor, split: Split) -> Tensor:
    """Those of the drawn anchors ``[anchors, rows, width]`` that a loss sees, as many.

    The released program puts the empty prompt, ``[1, rows, width]``, before each, and takes the
    second half of that for the anchors.
    """
    if split == "all":
        return anchors
    interleaved = torch.stack([empty.expand_as(anchors), anchors], 1).flatten(0, 1)
    return interleaved[len(anchors) :]
