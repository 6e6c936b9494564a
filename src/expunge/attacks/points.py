"""Where an attacked model is asked, and what it should answer there to draw the concept."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from expunge.attacks.target import Target
from expunge.models import Condition

Towards = Literal["noise", "base"]
"""What answers should be: the ``noise`` in the base's pictures, or the ``base``'s own answers."""


class Points(NamedTuple):
    """Some latents at their times, and the answers that are wanted."""

    latents: Tensor
    """``[points, channels, height, width]``."""
    time: Tensor
    """``[points]``."""
    wanted: Tensor
    """Shaped like ``latents``."""

    def loss(self, target: Target, condition: Condition) -> Tensor:
        """How far answers are from what is wanted, a scalar; one prompt, or one a point."""
        asked = condition.expand(len(self.time)) if len(condition) == 1 else condition
        answer = target.answer(self.latents, self.time, asked)
        return torch.nn.functional.mse_loss(answer.float(), self.wanted.float())


def known(target: Target, numbers: Tensor, towards: Towards) -> Points:
    """Points that the attacker knows already.

    Args:
        target: has them.
        numbers: which, ``[points]``.
        towards: what is wanted.
    """
    own = target.known
    numbers = numbers.to(own.time.device)
    latents, time = own.latents[numbers], own.time[numbers]
    if towards == "base":
        return Points(latents, time, target.wanted(numbers))
    # What leads straight from the point to the picture.
    process, clean = target.model.process, own.clean[own.picture[numbers]]
    nothing, one = torch.zeros_like(clean), torch.ones_like(clean)
    noise = (latents - process.mix(clean, nothing, time)) / process.mix(nothing, one, time)
    wanted = process.target(clean, noise, time)
    if target.guarded:
        without = own.unconditional[numbers]
        wanted = without + target.sampling.guidance_scale * (wanted - without)
    return Points(latents, time, wanted)


def noisy(target: Target, clean: Tensor, noise: Tensor, time: Tensor) -> Points:
    """Pictures ``[points, ...]`` with fresh noise, which is what is wanted."""
    process = target.model.process
    clean, noise, time = (one.to(target.model.device) for one in (clean, noise, time))
    return Points(process.mix(clean, noise, time), time, process.target(clean, noise, time))


Score = Callable[[Condition], float]


def proxy(target: Target, numbers: Tensor, towards: Towards) -> Score:
    """The loss of a condition at some points that stay the same, without gradients."""
    points = known(target, numbers, towards)

    @torch.no_grad()
    def score(condition: Condition) -> float:
        return float(points.loss(target, condition))

    return score
