"""What SepCE's changes leave alone, and how much of it fits.

All rows are rows of prompts' embeddings, ``[rows, width]`` float64 on the CPU. So are the spaces
(see ``expunge.algebra.null_space``).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from expunge.algebra.null_space import fitting, null_space, null_spaces
from expunge.models import Model
from expunge.sentences import beginning, fill

LOOSER = (1e-3, 3e-3, 0.01, 0.03, 0.1)
"""Tolerances to suggest when exact protection doesn't fit."""

VISIBLE = 0.01
"""Share of a concept's rows, by length, that a space must contain. With less, only a huge change
would have an effect."""


class Given(NamedTuple):
    """The rows that decide the directions of each change."""

    own: list[Tensor]
    """Each concept's prompts, which its change acts on."""
    shared: Tensor
    """Rows that every change leaves alone."""
    concepts: list[Tensor]
    """Each concept's rows that the changes of all other concepts leave alone."""
    kept: list[Tensor]
    """Each kept word's rows, which every change leaves alone."""

    def others(self, turn: int) -> list[Tensor]:
        """The protected rows of all concepts but one."""
        return [block for index, block in enumerate(self.concepts) if index != turn]

    def seen(self, turn: int) -> list[Tensor]:
        """All rows that the change of one concept leaves alone."""
        return [self.shared, *self.others(turn), *self.kept]

    def spaces(self, tolerance: float) -> list[Tensor]:
        """For each concept, the space orthogonal to everything that its change leaves alone."""
        common = null_space(torch.cat([self.shared, *self.kept]), tolerance=tolerance)
        return null_spaces(self.concepts, common, tolerance)

    def first_blind(self, spaces: Sequence[Tensor]) -> int | None:
        """The first concept whose space holds too little of its rows for a change to reach it."""
        blind = (turn for turn, space in enumerate(spaces) if not sees(self.own[turn], space))
        return next(blind, None)


def sees(own: Tensor, space: Tensor) -> bool:
    """Whether a change along a space can have enough effect on these rows."""
    return bool((own @ space.T).norm() > VISIBLE * own.norm())


def crowded(
    given: Given, names: Sequence[str], turn: int, tolerance: float, *, suggest: bool
) -> str:
    """The message for a concept without any direction left: how much fits, and what helps.

    With ``suggest`` it names settings that help.
    """
    width, own, blocks = given.shared.shape[1], given.own[turn], given.others(turn)
    none = f"{names[turn]}: of {width} directions none is left beside"
    room = null_space(given.shared, tolerance=tolerance)
    if not sees(own, room):
        return (
            f"{none} the empty prompt, the replacements and the beginnings of the sentences; use "
            "fewer contexts"
        )
    count, kept = (
        fitting(listed, room, lambda space: sees(own, space), tolerance)
        for listed in (blocks, [*blocks, *given.kept])
    )
    if count < len(blocks):
        what = f"{len(blocks)} other concepts: the first {count} fit; erase fewer at once"
    else:
        what = f"{len(given.kept)} kept words: the first {kept - count} fit; keep no more"
        what += ", or set protect" if suggest else ""
    looser = (one for one in LOOSER if one > tolerance)
    enough = (one for one in looser if given.first_blind(given.spaces(one)) is None)
    if suggest and (one := next(enough, None)):
        what += f"; or set tolerance={one}, which protects nearly as well"
    return f"{none} {what}"


def rows(model: Model, prompts: Sequence[str]) -> Tensor:
    """All rows of the prompts."""
    return model.encode(prompts).flatten(0, 1).double().cpu()


def ended(model: Model, prompts: Sequence[str]) -> list[Tensor]:
    """The rows of each prompt up to its end of text."""
    lengths = [len(ids) + 2 for ids in model.tokenized(prompts)]
    embeddings = model.encode(prompts).double().cpu()
    return [whole[:length] for whole, length in zip(embeddings, lengths, strict=True)]


def rows_naming(model: Model, phrases: Sequence[str], sentences: Sequence[str]) -> Tensor:
    """All rows of the bare phrases, and their sentences' rows up to the end of the text."""
    inside = [fill(sentence, phrase) for phrase in phrases for sentence in sentences]
    return torch.cat([rows(model, phrases), *ended(model, inside)])


def beginnings(model: Model, sentences: Sequence[str]) -> list[Tensor]:
    """The rows of the text before ``{}``, which don't depend on what follows."""
    before = [beginning(sentence).strip() for sentence in sentences]
    return [whole[:-1] for whole in ended(model, before)]
