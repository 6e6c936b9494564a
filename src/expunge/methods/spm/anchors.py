"""The embeddings that a membrane must leave alone in training."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

Split = Literal["released", "all"]
"""Which anchors count: all, or the half that the released program uses."""


def noise_anchors(draws: torch.Generator, target: Tensor, count: int) -> Tensor:
    """Random embeddings ``[count, rows, width]``, more often away from ``target`` than near it.

    A random direction is accepted with a probability of 1 minus its cosine with the target. Its
    length is 0.8 to 1.2 times the target's.
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
    """The anchors that the loss sees, as many as were drawn, ``[anchors, rows, width]``.

    The released program puts the empty prompt, ``[1, rows, width]``, before each anchor and then
    takes the second half of the list for the anchors.
    """
    if split == "all":
        return anchors
    interleaved = torch.stack([empty.expand_as(anchors), anchors], 1).flatten(0, 1)
    return interleaved[len(anchors) :]
