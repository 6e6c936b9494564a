"""Draw pictures, and let the caller's judge say whether each shows what it should."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from expunge.detectors.base import detector
from expunge.detectors.vocabulary import word_classifier
from expunge.errors import ExpungeError
from expunge.generation import ImageRequest, Sampler, sample
from expunge.models import Model

Recognise = Callable[[Sequence[Image.Image], Sequence[str]], Sequence[bool]]
"""Whether each picture shows what its words name."""


class Seen(NamedTuple):
    """Pictures in the order of their requests, and whether each shows what it should."""

    pictures: list[Image.Image]
    right: list[bool]


def recogniser(name: str, words: Sequence[str]) -> Recognise:
    """A judge from the detector called ``name``, which must know all of ``words``.

    Raises:
        ExpungeError: there is no such detector, or it doesn't know a word.
    """
    return word_classifier(detector(name), words).shows


def look(
    model: Model,
    requests: Sequence[ImageRequest],
    words: Sequence[str],
    recognise: Recognise,
    sampler: Sampler,
) -> Seen:
    """Draw every request, and judge whether picture i shows word i.

    Raises:
        ExpungeError: a picture can't be drawn, or the judge doesn't say yes or no to every one.
    """
    pictures = [Image.fromarray(pixels.numpy()) for _, pixels in sample(model, requests, sampler)]
    outcomes = list(recognise(pictures, words))
    if len(outcomes) != len(pictures) or not all(isinstance(o, bool | np.bool_) for o in outcomes):
        raise ExpungeError("the judge must say True or False of every picture; it didn't")
    return Seen(pictures, [bool(outcome) for outcome in outcomes])
