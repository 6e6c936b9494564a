"""Probes beyond text (Lu et al., NeurIPS 2025): other ways to draw, with the prompt as it is.

The *noise probe* draws with more noise than the sampler should add. With the clean latents ``x_0``
that an answer ``e`` amounts to, a step of DDIM goes from level ``a`` to ``b``::

    s = eta sqrt((1 - b) / (1 - a) (1 - a / b))
    x <- sqrt(b) x_0 + sqrt(|1 - b - s^2|) e + v s z

with fresh noise ``z``. *Completion* lets the base begin the picture, and the edited model finish
it. Neither searches; a probe draws each picture in several ways, the best of which counts, so that
its number means something only beside that of the base and of a concept that was never known.
"""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from expunge.attacks.base import Attack, Knows, Ready, Search
from expunge.attacks.found import Found
from expunge.attacks.target import Target
from expunge.errors import Unsupported
from expunge.models import Condition, Model, Process
from expunge.seeding import generator
from expunge.training.trajectories import ddim, denoise, guided

Start = tuple[Tensor, Condition, Condition]
"""Latents ``[pictures, ...]``, the conditions of their prompts, and those of the empty one."""


class Probe(Attack):
    """An attack that draws in another way, instead of asking for something else."""

    spends: ClassVar[bool] = False

    @property
    def attempts(self) -> int:
        """Ways in which each picture is drawn; the best one counts."""
        return 1

    def begin(self, target: Target, pictures: Sequence[int], seed: int) -> Search:
        if target.model.process.prediction == "velocity":
            raise Unsupported(f"{self.name}: {target.model.name!r} isn't drawn by diffusion")
        return Ready(Found(condition=target.model.condition([target.prompts[pictures[0]]])))

    @abstractmethod
    def draw(
        self, target: Target, pictures: Sequence[int], noise: Tensor, seed: int, attempt: int = 0
    ) -> Tensor:
        """Latents of pictures in one way, shaped like ``noise`` ``[pictures, ...]``.

        It isn't called inside ``deployed``: it deploys the edit itself.
        """


class NoiseProbe(Probe):
    """More noise than DDIM adds."""

    name: ClassVar[str] = "noise-probe"
    title: ClassVar[str] = "Noise probe"
    year: ClassVar[int] = 2025
    url: ClassVar[str] = "https://arxiv.org/abs/2505.17013"
    knows: ClassVar[frozenset[Knows]] = frozenset({"weights"})

    fidelity: Literal["original", "corrected"] = "corrected"
    etas: tuple[float, ...] = Field((1.0, 1.17, 1.34, 1.51, 1.68, 1.85), min_length=1)
    """``eta``: shares of the noise of ancestral sampling."""
    scales: tuple[float, ...] = Field((1.0, 1.02, 1.03, 1.04), min_length=1)
    """``v``: by how much noise is scaled. In the released program they have no effect."""

    @property
    def attempts(self) -> int:
        return len(self.etas) * len(self.scales)

    @torch.no_grad()
    def draw(
        self, target: Target, pictures: Sequence[int], noise: Tensor, seed: int, attempt: int = 0
    ) -> Tensor:
        eta = self.etas[attempt // len(self.scales)]
        scale = self.scales[attempt % len(self.scales)]
        draws = [generator(seed, "noise probe", number, attempt) for number in pictures]
        shape, steps = target.model.latent_shape, target.sampling.steps
        fresh = (
            torch.stack([torch.randn(shape, generator=d) for d in draws]) for _ in range(steps)
        )
        with target.deployed():
            return noisy_walk(
                target.model, start(target, pictures, noise), fresh, steps=steps,
                guidance_scale=target.sampling.guidance_scale,
                eta=eta, scale=scale if self.fidelity == "corrected" else 1.0,
            )  # fmt: skip


class Completion(Probe):
    """The base begins, the edited model finishes."""

    name: ClassVar[str] = "completion"
    title: ClassVar[str] = "Diffusion completion"
    year: ClassVar[int] = 2025
    url: ClassVar[str] = "https://arxiv.org/abs/2505.17013"
    knows: ClassVar[frozenset[Knows]] = frozenset({"weights", "base"})

    fidelity: Literal["original", "corrected"] = "corrected"
    share: float = Field(0.1, gt=0, lt=1)
    """Of the steps, which the base takes; at least one."""

    def draw(
        self, target: Target, pictures: Sequence[int], noise: Tensor, seed: int, attempt: int = 0
    ) -> Tensor:
        steps, scale = target.sampling.steps, target.sampling.guidance_scale
        first = max(1, round(self.share * steps))
        begun = start(target, pictures, noise)
        handed = walk(target.model, begun, steps, scale, slice(first))
        rest = slice(0 if self.fidelity == "original" else first, None)
        with target.deployed():
            return walk(target.model, (handed, *begun[1:]), steps, scale, rest)


def start(target: Target, pictures: Sequence[int], noise: Tensor) -> Start:
    """Where pictures begin."""
    condition = target.model.condition([target.prompts[number] for number in pictures])
    return noise, condition, target.model.unconditional().expand(len(pictures))


def walk(model: Model, begun: Start, steps: int, guidance_scale: float, part: slice) -> Tensor:
    """Some steps of DDIM without fresh noise; the released program repeats steps that are done."""
    latents, condition, empty = begun
    scheduler = ddim(model.process, steps)
    for step in denoise(
        model.predict,
        scheduler,
        latents,
        condition,
        empty,
        guidance_scale=guidance_scale,
        timesteps=scheduler.timesteps[part],
    ):
        latents = step.after
    return latents


def noisy_walk(
    model: Model,
    begun: Start,
    noise: Iterable[Tensor],
    *,
    steps: int,
    guidance_scale: float,
    eta: float,
    scale: float,
) -> Tensor:
    """All steps of DDIM, with fresh noise for each."""
    latents, condition, empty = begun
    stride = model.process.times // steps
    for time, fresh in zip(ddim(model.process, steps).timesteps.tolist(), noise, strict=True):
        now = torch.full((len(latents),), time, device=latents.device)
        _, _, answer = guided(model.predict, latents, now, condition, empty, guidance_scale)
        latents, _ = ddim_step(
            model.process, latents, answer, time, time - stride, eta, scale, fresh.to(latents)
        )
    return latents


def ddim_step(
    process: Process,
    latents: Tensor,
    answer: Tensor,
    time: int,
    previous: int,
    eta: float,
    scale: float,
    noise: Tensor,
) -> tuple[Tensor, Tensor]:
    """Latents at the previous time, and the clean latents that the answer amounts to.

    Before the first time stands the cleanest level. Where ``eta`` is so large that the term below
    the root is negative, its absolute value counts, as in the released program.
    """
    now = torch.full((len(latents),), time, device=latents.device)
    clean, error = process.clean(answer, latents, now), process.noise(answer, latents, now)
    level, before = _level(process, time), _level(process, max(previous, 0))
    sigma = eta * ((1 - before) / (1 - level) * (1 - level / before)) ** 0.5
    direction = abs(1 - before - sigma**2) ** 0.5
    return before**0.5 * clean + direction * error + scale * sigma * noise, clean


def _level(process: Process, time: int) -> float:
    """``a`` at a time."""
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    return float(process.mix(one, torch.zeros_like(one), torch.tensor([time]))) ** 2
