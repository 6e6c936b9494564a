"""What MACE's adapters train on: pictures of the concept, timesteps, and rows of the prompts.

Early denoising steps decide what is drawn, late ones its details. Concept-focal importance sampling
prefers the timesteps between::

    P(t) ~ sigma(gamma (t - t1)) - sigma(gamma (t - t2))
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from expunge.models import Condition, Model
from expunge.models.tokens import word_columns
from expunge.seeding import generator

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and deviation of ImageNet's colours. The released program scales pictures by these, not to
-1..1."""


class Examples(NamedTuple):
    """Pictures of a concept: their latents, and where the concept is."""

    mean: Tensor
    """``[pictures, channels, height, width]``."""
    deviation: Tensor
    """Shaped like ``mean``."""
    masks: Tensor
    """``[pictures, pixel height, pixel width]`` in 0..1."""


class AdapterBatch(NamedTuple):
    """What one step of an adapter needs."""

    latents: Tensor
    """Noised latents, ``[batch, channels, height, width]``."""
    timestep: Tensor
    """``[batch]``."""
    condition: Condition
    """The condition of each picture's prompt."""
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
    marks = word_columns(model, prompt, words)
    marks[1 + len(model.tokens(prompt)) :] = True
    return marks


def imagenet_latents(model: Model, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the latents of bytes ``[pictures, height, width, 3]``.

    Colours are scaled by ImageNet's, as in the released program, not as the autoencoder expects.
    """
    colours = pictures.float() / 255
    scaled = (colours - colours.new_tensor(MEAN)) / colours.new_tensor(DEVIATION)
    return model.posterior(scaled.permute(0, 3, 1, 2))


def training_batches(
    model: Model,
    examples: Examples,
    prompts: Sequence[tuple[str, str]],
    seed: int,
    *,
    size: int,
    steps: int,
    focused: bool,
) -> Iterator[AdapterBatch]:
    """The batch of every step: pictures, prompts (each with its words), timesteps, noise.

    The random draws of a step depend only on ``seed`` and its number.
    """
    condition = model.condition([prompt for prompt, _ in prompts])
    marks = torch.stack([columns(model, *pair) for pair in prompts]).to(model.device)
    process = model.process
    shares = focal(process.times) if focused else torch.ones(process.times)
    for step in range(steps):
        draws = generator(seed, "mace step", step)
        picture = torch.randint(len(examples.mean), (size,), generator=draws)
        prompt = torch.randint(len(prompts), (size,), generator=draws)
        timestep = torch.multinomial(shares, size, replacement=True, generator=draws)
        shape = (2, size, *examples.mean.shape[1:])
        wobble, noise = torch.randn(shape, generator=draws).to(model.device)
        latents = examples.mean[picture] + wobble * examples.deviation[picture]
        yield AdapterBatch(
            process.mix(latents, noise, timestep),
            timestep.to(model.device),
            condition[prompt],
            marks[prompt],
            examples.masks.to(model.device)[picture],
        )
