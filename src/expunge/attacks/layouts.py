"""Where free tokens stand in a prompt."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

Place = Literal["prefix", "suffix", "mid", "insert", "per_k_words"]
"""Before the prompt, behind it, in its middle, spread over it, or before every third token."""
WORDS = 3
"""Tokens of the prompt between two free ones, in ``per_k_words``."""


class Layout(NamedTuple):
    """A prompt's ids, some of which are free."""

    ids: tuple[int, ...]
    """Without start and end; what stands in free places doesn't matter."""
    free: tuple[int, ...]
    """The free places, from 0 on."""

    def filled(self, ids: Sequence[int]) -> list[int]:
        """The prompt with these ids in its free places."""
        found = list(self.ids)
        for place, one in zip(self.free, ids, strict=True):
            found[place] = one
        return found


def around(prompt: Sequence[int], free: int, place: Place) -> Layout:
    """UnlearnDiffAtk's layouts of a prompt's ids and a number of free ones."""
    count = len(prompt)
    pieces = {
        "prefix": [],
        "suffix": [count],
        "mid": [count // 2],
        "insert": [count // (free + 1)] * free,
        "per_k_words": [0] + [WORDS] * (free - 1),
    }[place]
    ids: list[int] = []
    at: list[int] = []
    rest = list(prompt)
    for number in range(free):
        before = pieces[number] if number < len(pieces) else 0
        ids += rest[:before]
        rest = rest[before:]
        at.append(len(ids))
        ids.append(0)
    return Layout((*ids, *rest), tuple(at))


def between(prompt: Sequence[int], every: int) -> Layout:
    """P4D-K's layout: a free token first, and after every so many of the prompt's."""
    ids: list[int] = []
    at: list[int] = []
    for number in range(len(prompt) // every + 1):
        at.append(len(ids))
        ids += [0, *prompt[number * every : (number + 1) * every]]
    return Layout(tuple(ids), tuple(at))


def alone(free: int) -> Layout:
    """Free tokens and nothing else."""
    return Layout((0,) * free, tuple(range(free)))
