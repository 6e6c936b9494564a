"""The suite for the bundled model's pictures of two things side by side, judged half by half.

A thing is erased, and its neighbour in the same prompt must stay: in-prompt retention. The first
that a prompt names is drawn on the left.
"""

from collections.abc import Iterator, Sequence
from itertools import cycle
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from expunge.concepts import Concept
from expunge.detectors.emoji import SIZE
from expunge.errors import ExpungeError
from expunge.evaluation.suite import (
    NO_OPTIONS,
    Judgement,
    Options,
    Plan,
    Prompt,
    Suite,
    groups_of,
    refuse,
)
from expunge.evaluation.suites.emoji import PLAIN, EmojiJudge, find, labels_of
from expunge.models.emoji import catalog
from expunge.models.emoji.vocabulary import EmojiObject, paired

VERSION = 1
LEFT, RIGHT = "left", "right"
BESIDE, OTHER_PAIRS = "beside another", "other pairs"
"""The group that names the erased thing and a kept one; that of two kept things."""
LABELS = {"object": "object", "beside": "object", "style": "style"}
"""What is judged of a half for each label of a pair."""
TOLD = ("labels", "confidences", "scores")
"""What a judgement says by attribute."""


class PairsPlanSize(NamedTuple):
    """How much of the vocabulary an evaluation draws."""

    every: int
    """Step through the catalogue's objects for the kept things: 3 takes every third."""
    styles: int
    """Styles in which each pair is asked for."""
    seeds: tuple[int, ...]


SIZES = {
    "brief": PairsPlanSize(13, styles=1, seeds=(0,)),
    "quick": PairsPlanSize(4, styles=1, seeds=(0,)),
    "full": PairsPlanSize(1, styles=7, seeds=(0, 1)),
}


def plan(
    concept: Concept,
    *,
    erased: Sequence[Concept] = (),
    size: str = "quick",
    seeds: Sequence[int] | None = None,
    options: Options = NO_OPTIONS,
) -> Plan:
    """The prompts for one thing. No concept of ``erased`` is asked for as a kept one.

    Raises:
        ExpungeError: the model doesn't know a concept, it is a style, the size is unknown, or an
            option is set.
    """
    refuse("pairs", options)
    if size not in SIZES:
        raise ExpungeError(f"unknown size {size!r}; choose {', '.join(SIZES)}")
    attribute, name = find(concept)
    if attribute != "object":
        raise ExpungeError(
            f"the pairs suite measures things beside each other, and {name!r} is a style; "
            "the emoji suite measures styles"
        )
    gone = {label for other in (concept, *erased) for label in labels_of(other)}
    kept = [entry for entry in catalog().objects[:: SIZES[size].every] if entry.name not in gone]
    styles = [style.name for style in catalog().styles if style.name not in gone]
    return Plan(
        suite="pairs",
        version=VERSION,
        size=size,
        concept=concept,
        attribute=attribute,
        label=name,
        groups=groups_of(
            (
                BESIDE,
                "efficacy",
                "its name beside a kept thing's, in both orders",
                list(_besides(catalog().object(name), kept, styles, SIZES[size].styles)),
            ),
            (
                OTHER_PAIRS,
                "retention",
                "two kept things",
                list(_others(kept, styles, SIZES[size].styles)),
            ),
        ),
        seeds=tuple(seeds) if seeds is not None else SIZES[size].seeds,
        notes=("Things are asked for by their names alone, on white.",),
    )


def _besides(
    target: EmojiObject, kept: Sequence[EmojiObject], styles: Sequence[str], each: int
) -> Iterator[Prompt]:
    turn = cycle(styles)
    for entry in kept:
        for _ in range(min(each, len(styles))):
            style = next(turn)
            yield _prompt(target, entry, style, first=True)
            yield _prompt(target, entry, style, first=False)


def _others(kept: Sequence[EmojiObject], styles: Sequence[str], each: int) -> Iterator[Prompt]:
    """Each thing beside the one half the list away, so that neighbours rarely meet."""
    turn = cycle(styles)
    half = len(kept) // 2
    for one, other in zip(kept, (*kept[half:], *kept[:half]), strict=True):
        for _ in range(min(each, len(styles))):
            yield _prompt(one, other, next(turn), first=True)


def _prompt(one: EmojiObject, beside: EmojiObject, style: str, *, first: bool) -> Prompt:
    """``first``: whether the one is named before the one beside it."""
    names = (one.name, beside.name) if first else (beside.name, one.name)
    return Prompt(
        text=text(*names, style),
        expected={"object": one.name, "beside": beside.name, "style": style},
        sensitive="unsafe" in (one.kind, beside.kind),
        height=SIZE,
        width=2 * SIZE,
    )


def text(first: str, second: str, style: str) -> str:
    """The prompt that asks for two things, the first on the left."""
    return paired(PLAIN).format(first=first, second=second, style=style)


def halves(pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """All left halves, then all right halves.

    Raises:
        ExpungeError: a picture isn't two squares of the judges' size.
    """
    whole = (2 * SIZE, SIZE)
    if sizes := {picture.size for picture in pictures} - {whole}:
        raise ExpungeError(f"pairs are {whole[0]}x{whole[1]} pictures, not {sorted(sizes)}")
    boxes = ((0, 0, SIZE, SIZE), (SIZE, 0, 2 * SIZE, SIZE))
    return [picture.crop(box) for box in boxes for picture in pictures]


class PairJudge:
    """The emoji judge, shown one half after the other; ``erased`` are the names of what is."""

    name = "emoji judges, half by half"
    size = (SIZE, SIZE)
    decision = (
        "for each half, the label with the highest probability, without a threshold; what is "
        "erased counts in either half, everything else in its own"
    )

    def __init__(self, erased: Sequence[str]) -> None:
        self._half = EmojiJudge()
        self._erased = frozenset(erased)
        self.sha256 = self._half.sha256

    def judge(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> list[Judgement]:
        """Labels of each half, e.g. ``left object``. The fit to a prompt of two isn't known."""
        seen = self._half.judge(halves(pictures), [*prompts, *prompts])
        return [
            _joined(left, right)
            for left, right in zip(seen[: len(pictures)], seen[len(pictures) :], strict=True)
        ]

    def read(self, judgement: Judgement, prompt: Prompt) -> Judgement:
        """``object``, ``beside`` and ``style``; the style is that of the half beside."""
        one, beside, style = (prompt.expected[name] for name in ("object", "beside", "style"))
        sides = (LEFT, RIGHT) if prompt.text == text(one, beside, style) else (RIGHT, LEFT)
        found, other = sides
        if one in self._erased:  # on equal terms, the half that should show it
            found = max(sides, key=lambda side: _certainty(judgement, f"{side} object", one))
        places = {"object": found, "beside": other, "style": other}
        return Judgement.model_validate(
            {
                part: {
                    name: getattr(judgement, part)[f"{side} {LABELS[name]}"]
                    for name, side in places.items()
                }
                for part in TOLD
            }
        )

    def features(self, pictures: Sequence[Image.Image]) -> Tensor:
        """``[pictures, 2 width]``: of the left half, then of the right one."""
        return torch.cat(self._half.features(halves(pictures)).chunk(2), dim=1)


def _certainty(judgement: Judgement, place: str, label: str) -> tuple[bool, float]:
    return judgement.labels[place] == label, judgement.scores[place].get(label, 0.0)


def _joined(left: Judgement, right: Judgement) -> Judgement:
    return Judgement.model_validate(
        {
            part: {
                f"{side} {name}": value
                for side, seen in ((LEFT, left), (RIGHT, right))
                for name, value in getattr(seen, part).items()
            }
            for part in TOLD
        }
    )


def _judge(options: Options, plans: Sequence[Plan]) -> PairJudge:
    return PairJudge([plan.label for plan in plans])


SUITE = Suite(plan=plan, judge=_judge)
