"""What Forget-Me-Not trains on: noised pictures of a concept, and which columns name it."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from expunge.method.run import Run
from expunge.models import Condition, Model
from expunge.models.tokens import word_columns
from expunge.seeding import generator, integer

Pooler = Literal["none", "first", "all"]
"""Which ends of the text count as the concept."""


class ShownConcept(NamedTuple):
    """A concept: its pictures, and the prompts that name it."""

    mean: Tensor
    """Of the VAE's latents, ``[pictures, channels, height, width]``."""
    deviation: Tensor
    """Shaped like ``mean``."""
    condition: Condition
    """Of the prompts."""
    columns: Tensor
    """``S`` of each prompt, ``[prompts, tokens]`` bool."""


def columns(model: Model, prompt: str, words: str, pooler: Pooler) -> Tensor:
    """``S`` of a prompt: all places of the words, and the ends of the text that ``pooler`` says.

    Returns:
        ``[tokens]`` bool.

    Raises:
        ExpungeError: the words' tokens aren't in the prompt.
    """
    marks, end = word_columns(model, prompt, words), 1 + len(model.tokens(prompt))
    padded_alike = model.text_encoders[0].pads_with_end
    marks[end] = pooler != "none"
    marks[end + 1 :] = pooler == "all" and padded_alike
    return marks


def row(run: Run, shown: Sequence[ShownConcept], turn: int) -> dict[str, Any]:
    """One picture with its noise, timestep and prompt.

    Concepts take turns, and each shows all its pictures, shuffled, before it shows one again.
    """
    round_, which = divmod(turn, len(shown))
    mean, deviation, condition, marks = shown[which]
    epoch, at = divmod(round_, len(mean))
    order = torch.randperm(len(mean), generator=generator(run.seed, "fmn order", which, epoch))
    draws = generator(run.seed, "fmn", turn)
    prompt = integer(draws, 0, len(condition))
    timestep = torch.randint(run.model.process.times, (), generator=draws)
    wobble, noise = torch.randn((2, *mean.shape[1:]), generator=draws).to(mean.device)
    picture = int(order[at])
    return {
        "latents": mean[picture] + wobble * deviation[picture],
        "noise": noise,
        "timestep": timestep.to(mean.device),
        "condition": condition[prompt : prompt + 1],
        "columns": marks[prompt],
    }
