"""What an attacker knows of a concept: the base model's pictures of it, and its answers there."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from expunge.models import Condition, Model
from expunge.models.sampling import Sampling
from expunge.progress import track
from expunge.seeding import derive, generator, integer
from expunge.training.trajectories import ddim, denoise

BLOCK = 16
"""Pictures that are drawn side by side."""


@dataclass(frozen=True, eq=False)
class Known:
    """The base model's pictures of the concept, one a prompt, and points on the way to them.

    Half of a picture's points are on the trajectory that led to it; the others are the picture
    with fresh noise, at any time.
    """

    clean: Tensor
    """Latents of the pictures, ``[pictures, channels, height, width]``."""
    latents: Tensor
    """Latents of the points, ``[points, channels, height, width]``."""
    time: Tensor
    """``[points]``."""
    picture: Tensor
    """Which picture each point belongs to, ``[points]``."""
    conditional: Tensor
    """The base's answer for the picture's prompt, shaped like ``latents``."""
    unconditional: Tensor
    """The base's answer without a prompt."""

    def draw(self, count: int, draws: torch.Generator, pictures: Sequence[int] = ()) -> Tensor:
        """Numbers of ``count`` points at random, each as likely as the others, ``[count]``.

        Of some ``pictures`` only, if there are any.
        """
        if not pictures:
            return torch.randint(len(self.time), (count,), generator=draws)
        [own] = torch.isin(self.picture.cpu(), torch.tensor(list(pictures))).nonzero(as_tuple=True)
        return own[torch.randint(len(own), (count,), generator=draws)]


def know(
    model: Model, prompts: Sequence[str], sampling: Sampling, seed: int, points: int = 12
) -> Known:
    """Draw a picture of each prompt with the model as it is, which is the base.

    Args:
        model: has no edit applied.
        prompts: ask for the concept.
        sampling: steps and guidance; steps are DDIM's, which don't draw noise.
        seed: decides all noise. It isn't the noise of the pictures that are attacked.
        points: of each picture.
    """
    blocks = [range(at, min(at + BLOCK, len(prompts))) for at in range(0, len(prompts), BLOCK)]
    parts = [
        _known(model, prompts, block, sampling, seed, points)
        for block in track(blocks, "pictures of the concept", total=len(blocks))
    ]
    return Known(*(torch.cat([getattr(part, n) for part in parts]) for n in vars(parts[0])))


@torch.no_grad()
def _known(
    model: Model,
    prompts: Sequence[str],
    block: Sequence[int],
    sampling: Sampling,
    seed: int,
    points: int,
) -> Known:
    scheduler = ddim(model.process, sampling.steps)
    draws = [generator(seed, "known", number) for number in block]
    noise = torch.stack([torch.randn(model.latent_shape, generator=one) for one in draws])
    condition = model.condition([prompts[number] for number in block])
    empty = model.unconditional().expand(len(block))
    walk = list(
        denoise(
            model.predict,
            scheduler,
            noise.to(model.device, model.dtype) * scheduler.init_noise_sigma,
            condition,
            empty,
            guidance_scale=sampling.guidance_scale,
            timesteps=scheduler.timesteps,
        )
    )
    clean = walk[-1].after
    latents, times, rows = [], [], []
    for row, draw in enumerate(draws):
        for number in range(points):
            if number % 2:
                step = walk[integer(draw, 0, len(walk))]
                latents.append(step.latents[row])
                times.append(int(step.timestep[row]))
            else:
                time = integer(draw, 1, model.process.times)
                fresh = torch.randn(model.latent_shape, generator=draw).to(clean)
                mixed = model.process.mix(clean[row : row + 1], fresh[None], torch.tensor([time]))
                latents.append(mixed[0])
                times.append(time)
            rows.append(row)
    where, when = torch.stack(latents), torch.tensor(times, device=model.device)
    conditional, unconditional = (
        answers(model, where, when, one[rows]) for one in (condition, empty)
    )
    picture = torch.tensor([block[row] for row in rows], device=model.device)
    return Known(clean, where, when, picture, conditional, unconditional)


def seen(model: Model, clean: Tensor, seed: int, points: int = 12) -> Known:
    """What is known to an attacker who has pictures of the concept, but no model that drew them.

    The answers that the concept should get are those of a denoiser that knows the pictures; all
    points are pictures with fresh noise.

    Args:
        model: what is attacked.
        clean: latents of the pictures in it, ``[pictures, channels, height, width]``.
        seed: decides all noise.
        points: of each picture.
    """
    draws = [generator(seed, "seen", number) for number in range(len(clean))]
    picture = torch.arange(len(clean)).repeat_interleave(points)
    time = torch.tensor(
        [integer(draw, 1, model.process.times) for draw in draws for _ in range(points)]
    )
    shape = model.latent_shape
    fresh = [torch.randn(shape, generator=draw) for draw in draws for _ in range(points)]
    noise = torch.stack(fresh).to(clean)
    when, which = time.to(model.device), picture.to(model.device)
    latents = model.process.mix(clean[which], noise, when)
    empty = model.unconditional().expand(len(latents))
    with torch.no_grad():
        unconditional = answers(model, latents, when, empty)
    wanted = model.process.target(clean[which], noise, when)
    return Known(clean, latents, when, which, wanted, unconditional)


def answers(model: Model, latents: Tensor, time: Tensor, condition: Condition) -> Tensor:
    """What a model answers at points, ``[points, ...]``, some of them at a time."""
    blocks = [slice(at, at + BLOCK) for at in range(0, len(latents), BLOCK)]
    return torch.cat([model.predict(latents[b], time[b], condition[b]) for b in blocks])


def drawing_seed(seed: int, prompt: str, number: int) -> int:
    """The seed of an attacked picture's noise."""
    return derive(seed, "attacked", prompt, number) % 2**32


def prompts_for(prompts: Sequence[str], pictures: int) -> tuple[str, ...]:
    """A prompt for each picture; they take turns."""
    return tuple(prompts[number % len(prompts)] for number in range(pictures))
