"""What MACE's adapters train on: pictures of the concept, timesteps, and rows of the prompts.

Early timesteps decide on what is drawn, late ones on its details; concept-focal importance
sampling takes those between::

    P(t) ~ sigma(gamma (t - t1)) - sigma(gamma (t - t2))
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from expunge.errors import ExpungeError
from expunge.models import Model
from expunge.seeding import generator

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's colours: what the released program scales pictures with, instead of to -1..1."""


class Examples(NamedTuple):
    """Pictures of a concept: what the VAE makes of them, and where the concept is."""

    mean: Tensor
    """``[pictures, channels, height, width]``."""
    deviation: Tensor
    """Shaped like ``mean``."""
    masks: Tensor
    """``[pictures, pixel height, pixel width]`` in 0..1."""


class Batch(NamedTuple):
    """What one step needs."""

    latents: Tensor
    """Noised, ``[batch, channels, height, width]``."""
    timestep: Tensor
    """``[batch]``."""
    embeddings: Tensor
    """``[batch, tokens, width]``."""
    columns: Tensor
    """The rows ``S`` of each prompt, ``[batch, tokens]`` bool."""
    masks: Tensor
    """``[batch, pixel height, pixel width]`` in 0..1."""


def focal(count: int = 1000, t1: float = 200, t2: float = 400, gamma: float = 0.05) -> Tensor:
    """``P(t)`` of concept-focal importance sampling, ``[count]`` float64."""
    t = torch.arange(count, dtype=torch.float64)
    shares = torch.sigmoid(gamma * (t - t1)) - torch.sigmoid(gamma * (t - t2))
    return shares / shares.sum()


def columns(model: Model, prompt: str, words: str) -> Tensor:
    """The rows ``S`` of a prompt: all places of the words, the end of the text, all padding.

    Returns:
        ``[tokens]`` bool.

    Raises:
        ExpungeError: the words' tokens aren't in the prompt.
    """
    ids, own = model.tokens(prompt), model.tokens(words)
    starts = [at for at in range(len(ids)) if ids[at : at + len(own)] == own]
    if not own or not starts:
        raise ExpungeError(
            f"{prompt!r} doesn't hold the tokens of {words!r}; {{}} must stand as a word by itself"
        )
    marks = torch.zeros(model.pipe.tokenizer.model_max_length, dtype=torch.bool)
    for start in starts:
        marks[1 + start : 1 + start + len(own)] = True
    marks[1 + len(ids) :] = True
    return marks


@torch.no_grad()
def encoded(model: Model, pictures: Tensor, *, imagenet: bool = False) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the VAE's latents of bytes ``[pictures, height, width, 3]``.

    ``imagenet`` scales the colours as the released program does, not as the VAE expects.
    """
    vae, parts = model.pipe.vae, []
    for picture in pictures:
        colours = picture.to(vae.device).float() / 255
        if imagenet:
            colours = (colours - colours.new_tensor(MEAN)) / colours.new_tensor(DEVIATION)
        else:
            colours = 2 * colours - 1
        posterior = vae.encode(colours.permute(2, 0, 1)[None].to(vae.dtype)).latent_dist
        parts.append((posterior.mean.float(), posterior.std.float()))
    mean, deviation = (
        torch.cat(column) * vae.config.scaling_factor for column in zip(*parts, strict=True)
    )
    return mean.to(model.device), deviation.to(model.device)


def noised(model: Model, latents: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
    """``sqrt(a_t) x + sqrt(1 - a_t) e``, shaped like ``latents`` ``[batch, ...]``."""
    shares: Tensor = model.pipe.scheduler.alphas_cumprod
    kept = shares.to(latents)[timestep.to(latents.device)].view(-1, 1, 1, 1)
    return kept.sqrt() * latents + (1 - kept).sqrt() * noise


def drawn(
    model: Model,
    examples: Examples,
    prompts: Sequence[tuple[str, str]],
    seed: int,
    *,
    size: int,
    steps: int,
    focused: bool,
) -> Iterator[Batch]:
    """The batch of every step: pictures, prompts (each with its words), timesteps, noise.

    Each step has its own draws, which depend on ``seed`` and its number alone.
    """
    embeddings = model.encode([prompt for prompt, _ in prompts])
    marks = torch.stack([columns(model, *pair) for pair in prompts]).to(model.device)
    count = len(model.pipe.scheduler.alphas_cumprod)
    shares = focal(count) if focused else torch.ones(count)
    for step in range(steps):
        draws = generator(seed, "mace step", step)
        picture = torch.randint(len(examples.mean), (size,), generator=draws)
        prompt = torch.randint(len(prompts), (size,), generator=draws)
        timestep = torch.multinomial(shares, size, replacement=True, generator=draws)
        shape = (2, size, *examples.mean.shape[1:])
        wobble, noise = torch.randn(shape, generator=draws).to(model.device)
        latents = examples.mean[picture] + wobble * examples.deviation[picture]
        yield Batch(
            noised(model, latents, noise, timestep),
            timestep.to(model.device),
            embeddings[prompt],
            marks[prompt],
            examples.masks.to(model.device)[picture],
        )
