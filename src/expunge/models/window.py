"""Prompts that are longer than a model reads: what stands behind its window has no effect."""

from collections.abc import Sequence
from typing import NamedTuple


class Cut(NamedTuple):
    """A prompt of which the model reads only the beginning."""

    at: int
    """Its place among the prompts that were asked about, from 0."""
    prompt: str
    pieces: int
    """Pieces of the whole prompt, without start and end."""
    read: int
    """Pieces that the model reads."""


def remark(cuts: Sequence[Cut], total: int, first: str, noun: str = "prompt") -> str:
    """One sentence on prompts that are cut; "" if none is.

    Args:
        cuts: what ``Model.cut`` found.
        total: prompts that were asked about.
        first: what to call the first cut prompt, e.g. ``case 0``.
        noun: what the prompts are, in the singular.
    """
    if not cuts:
        return ""
    longest = max(cuts, key=lambda cut: cut.pieces)
    verb = "is" if len(cuts) == 1 else "are"
    return (
        f"{len(cuts):,} of {total:,} {noun}{'' if total == 1 else 's'} {verb} longer than the "
        f"{longest.read} pieces that the model reads (up to {longest.pieces}; first: {first}); "
        "the rest has no effect"
    )
