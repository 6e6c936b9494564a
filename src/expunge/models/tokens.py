"""Where in a prompt some words stand."""

from collections.abc import Sequence

import torch
from torch import Tensor

from expunge.errors import ExpungeError
from expunge.models.model import Model


def places(ids: Sequence[int], own: Sequence[int]) -> list[int]:
    """Where the token ids ``own`` begin among ``ids``; nowhere if there are none."""
    return [at for at in range(len(ids)) if own and ids[at : at + len(own)] == own]


def word_columns(model: Model, prompt: str, words: str) -> Tensor:
    """Which rows of a prompt its words are: all their places.

    Returns:
        ``[tokens]`` bool.

    Raises:
        ExpungeError: the words' tokens aren't in the prompt.
    """
    own = model.tokens(words)
    starts = places(model.tokens(prompt), own)
    if not starts:
        raise ExpungeError(
            f"{prompt!r} doesn't hold the tokens of {words!r}; {{}} must stand as a word by itself"
        )
    marks = torch.zeros(model.window, dtype=torch.bool)
    for start in starts:
        marks[1 + start : 1 + start + len(own)] = True
    return marks
