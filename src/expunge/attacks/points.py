"""Where an attacked model is asked, and what it should answer there to draw the concept."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from expunge.attacks.known import BLOCK
from expunge.attacks.target import Target
from expunge.models import Condition

Towards = Literal["noise", "base"]
"""What answers should be: the ``noise`` in the base's pictures, or the ``base``'s own answers."""
TIMES, STEPS = 50, 40
"""Of UnlearnDiffAtk's program: times of one run, and steps at each."""


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

    def losses(self, target: Target, condition: Condition) -> Tensor:
        """The loss of each prompt, ``[prompts]``, some prompts side by side."""
        at_once = max(1, BLOCK // len(self.time))
        return torch.cat(
            [
                self._beside(target, condition[first : first + at_once])
                for first in range(0, len(condition), at_once)
            ]
        )

    def _beside(self, target: Target, condition: Condition) -> Tensor:
        points, prompts = len(self.time), len(condition)
        asked = condition[torch.arange(prompts).repeat_interleave(points).tolist()]
        many = Points(*(one.repeat(prompts, *[1] * (one.ndim - 1)) for one in self))
        answer = target.answer(many.latents, many.time, asked)
        squares = (answer.float() - many.wanted.float()).square()
        return squares.flatten(1).mean(1).view(prompts, points).mean(1)


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


def fresh(target: Target, picture: int, time: Tensor, draws: Sequence[torch.Generator]) -> Points:
    """A known picture with new noise at each time, from a generator each."""
    clean = target.known.clean[picture].expand(len(time), *target.model.latent_shape)
    noise = [torch.randn(target.model.latent_shape, generator=one) for one in draws]
    return noisy(target, clean, torch.stack(noise).to(clean), time)


def time_of(step: int, times: int) -> int:
    """When a step of UnlearnDiffAtk's program looks, of a process with so many times."""
    stride = times // TIMES
    return stride // 2 + stride * (step // STEPS)


Score = Callable[[Condition], list[float]]
"""What each of some prompts is worth; the lower, the better."""


def proxy(target: Target, numbers: Tensor, towards: Towards) -> Score:
    """The losses of prompts at some points that stay the same, without gradients."""
    points = known(target, numbers, towards)

    @torch.no_grad()
    def score(condition: Condition) -> list[float]:
        return points.losses(target, condition).tolist()

    return score
