"""Sentences with ``{}`` for some words. All other braces are text: prompts hold them too."""

from typing import Annotated

from pydantic import AfterValidator

from expunge.errors import ExpungeError

PLACE = "{}"
"""Where the words go."""


def _one_place(sentence: str) -> str:
    if sentence.count(PLACE) != 1:
        raise ValueError(f"{sentence!r} must hold {{}} once, where the concept's words go")
    return sentence


Context = Annotated[str, AfterValidator(_one_place)]
"""A sentence around a concept's words, e.g. ``a photo of a {} in the rain``."""


def fill(sentence: str, words: str) -> str:
    """The sentence with these words at its place.

    Raises:
        ExpungeError: it has no place, so it would never name them.
    """
    before, place, after = sentence.partition(PLACE)
    if not place:
        raise ExpungeError(f"{sentence!r} has no {{}} where {words!r} could go")
    return before + words + after


def beginning(sentence: str) -> str:
    """The sentence up to its place."""
    return sentence.partition(PLACE)[0]
