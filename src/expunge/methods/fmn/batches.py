"""What Forget-Me-Not trains on: noised pictures of a concept, and which columns name it."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from expunge.method.run import Run
from expunge.methods.turns import picture_in_turn
from expunge.models import Condition, Model
from expunge.models.tokens import word_columns
from expunge.seeding import generator, integer

Pooler = Literal["none", "first", "all"]
"""Which end-of-text columns count as part of the concept."""


class ShownConcept(NamedTuple):
    """A concept's pictures, and the prompts that name it."""

    mean: Tensor
    """Mean of the VAE's latents, ``[pictures, channels, height, width]``."""
    deviation: Tensor
    """Their deviation, shaped like ``mean``."""
    condition: Condition
    """The conditions of the prompts."""
    columns: Tensor
    """``S`` of each prompt, ``[prompts, tokens]`` bool."""


def columns(model: Model, prompt: str, words: str, pooler: Pooler) -> Tensor:
    """``S`` of a prompt: all places of the words, and the ends of text that ``pooler`` selects.

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

    Concepts take turns; see ``picture_in_turn``.
    """
    counts = [len(concept.mean) for concept in shown]
    which, picture = picture_in_turn(run.seed, "fmn order", counts, turn)
    mean, deviation, condition, marks = shown[which]
    draws = generator(run.seed, "fmn", turn)
    prompt = integer(draws, 0, len(condition))
    timestep = torch.randint(run.model.process.times, (), generator=draws)
    wobble, noise = torch.randn((2, *mean.shape[1:]), generator=draws).to(mean.device)
    return {
        "latents": mean[picture] + wobble * deviation[picture],
        "noise": noise,
        "timestep": timestep.to(mean.device),
        "condition": condition[prompt : prompt + 1],
        "columns": marks[prompt],
    }
