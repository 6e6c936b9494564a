"""The suite for the bundled model: its own vocabulary, its own judges.

For an object or a character the prompts are its name in all styles, its synonyms, its implicit
descriptions, its neighbours and other objects. For a style they are objects in that style and
objects in the other styles.
"""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle, islice
from typing import NamedTuple, TypeVar

from PIL import Image
from torch import Tensor

from expunge.concepts import Concept
from expunge.detectors.emoji import NOTHING, SIZE, load_judges
from expunge.errors import ExpungeError
from expunge.evaluation.suite import (
    NO_OPTIONS,
    Group,
    Judgement,
    Options,
    Plan,
    Prompt,
    Suite,
    groups_of,
    judgement,
    ranked,
    refuse,
)
from expunge.generation.sampler import Sampler
from expunge.models.emoji import catalog
from expunge.models.emoji.vocabulary import EmojiObject

VERSION = 1
PLAIN = "{object}, {style} style"

Turn = TypeVar("Turn")


class EmojiPlanSize(NamedTuple):
    """How much of the vocabulary an evaluation draws."""

    templates: int
    """Sentences for an erased object's name; each is used in all styles."""
    wording_styles: int
    """Styles for each other wording of the object, and for each neighbour."""
    kept_every: int
    """Step through the catalogue's objects for the kept prompts: 3 takes every third."""
    kept_styles: int
    """Styles in which each of these objects is asked for."""
    styled_every: int
    """The same step for the prompts in an erased style."""
    seeds: tuple[int, ...]


SIZES = {
    "brief": EmojiPlanSize(
        2, wording_styles=2, kept_every=4, kept_styles=1, styled_every=5, seeds=(0,)
    ),
    "quick": EmojiPlanSize(
        3, wording_styles=3, kept_every=3, kept_styles=1, styled_every=4, seeds=(0,)
    ),
    "full": EmojiPlanSize(
        7, wording_styles=7, kept_every=1, kept_styles=7, styled_every=1, seeds=(0, 1, 2, 3, 4)
    ),
}


def plan(
    concept: Concept,
    *,
    erased: Sequence[Concept] = (),
    size: str = "quick",
    seeds: Sequence[int] | None = None,
    options: Options = NO_OPTIONS,
) -> Plan:
    """The prompts for one concept. No concept of ``erased`` is asked for as a kept one.

    Raises:
        ExpungeError: the model doesn't know a concept, the size is unknown, or an option is set.
    """
    refuse("emoji", options)
    if size not in SIZES:
        raise ExpungeError(f"unknown size {size!r}; choose {', '.join(SIZES)}")
    attribute, label = find(concept)
    gone = {find(other)[1] for other in (concept, *erased)}
    groups = _object_groups if attribute == "object" else _style_groups
    return Plan(
        suite="emoji",
        version=VERSION,
        size=size,
        concept=concept,
        attribute=attribute,
        label=label,
        groups=groups(label, gone, SIZES[size]),
        seeds=tuple(seeds) if seeds is not None else SIZES[size].seeds,
        notes=_notes(concept, attribute, label),
    )


def find(concept: Concept) -> tuple[str, str]:
    """Whether the concept is an ``object`` or a ``style``, and its name in the catalogue.

    Raises:
        ExpungeError: the catalogue has no such thing; the message lists near names.
    """
    styles = {style.name: ("style", style.name) for style in catalog().styles}
    styles |= {f"{name} style": place for name, place in styles.items()}
    objects = {words: ("object", o.name) for o in catalog().objects for words in o.wordings}
    known = styles if concept.kind == "style" else styles | objects
    words = concept.target.lower()
    if words not in known:
        near = difflib.get_close_matches(words, known, n=3, cutoff=0.4) or sorted(styles)
        raise ExpungeError(
            f"the emoji suite can't measure {concept.target!r}, which the model never learned; "
            f"did you mean {', '.join(near)}?"
        )
    return known[words]


def _object_groups(name: str, gone: set[str], size: EmojiPlanSize) -> tuple[Group, ...]:
    known = catalog()
    target = known.object(name)
    styles = [style.name for style in known.styles if style.name not in gone]
    neighbours = [known.object(other) for other in target.neighbours if other not in gone]
    rest = [(o, style) for o, style in _kept(gone, size) if o.name not in target.neighbours]

    def worded(wordings: Iterable[str]) -> list[Prompt]:
        return [_prompt(target, s, w) for w, s in _rotated(wordings, styles, size.wording_styles)]

    near = _rotated(neighbours, styles, size.wording_styles)
    return groups_of(
        ("explicit", "efficacy", "its name", _sentences(target, styles, size.templates)),
        ("synonyms", "efficacy", "other words for it", worded(target.synonyms)),
        ("implicit", "efficacy", "described without a name", worded(target.implicit)),
        ("neighbours", "retention", "what is most like it", [_prompt(*pair) for pair in near]),
        ("other objects", "retention", "everything else", [_prompt(*pair) for pair in rest]),
    )


def _style_groups(name: str, gone: set[str], size: EmojiPlanSize) -> tuple[Group, ...]:
    drawn = [entry for entry in catalog().objects[:: size.styled_every] if entry.name not in gone]
    phrased = zip(drawn, cycle(_styled_templates()), strict=False)
    return groups_of(
        (
            "explicit",
            "efficacy",
            "objects in this style",
            [_prompt(entry, name, template=template) for entry, template in phrased],
        ),
        (
            "other styles",
            "retention",
            "objects in the other styles",
            [_prompt(*pair) for pair in _kept(gone, size)],
        ),
    )


def _kept(gone: set[str], size: EmojiPlanSize) -> Iterator[tuple[EmojiObject, str]]:
    """The same objects and styles for every concept, so that base pictures are shared."""
    known = catalog()
    styles = [style.name for style in known.styles]
    for entry, style in _rotated(known.objects[:: size.kept_every], styles, size.kept_styles):
        if entry.name not in gone and style not in gone:
            yield entry, style


def _rotated(items: Iterable[Turn], styles: Sequence[str], each: int) -> Iterator[tuple[Turn, str]]:
    """Each item in ``each`` styles; they take turns, so that all styles are used equally often."""
    turn = cycle(styles)
    for item in items:
        for style in islice(turn, min(each, len(styles))):
            yield item, style


def _sentences(target: EmojiObject, styles: Sequence[str], count: int) -> list[Prompt]:
    return [
        _prompt(target, style, template=template)
        for template in _styled_templates()[:count]
        for style in styles
    ]


def _styled_templates() -> list[str]:
    """Templates with a style: first the plain ones, then those that also name a background."""
    styled = [template for template in catalog().templates if "{style}" in template]
    return sorted(styled, key=lambda template: "{background}" in template)


def _prompt(entry: EmojiObject, style: str, wording: str = "", template: str = PLAIN) -> Prompt:
    words = template.format(object=wording or entry.name, style=style, background="white")
    return Prompt(
        text=words,
        expected={"object": entry.name, "style": style},
        sensitive=entry.kind == "unsafe",
    )


def _notes(concept: Concept, attribute: str, label: str) -> tuple[str, ...]:
    if attribute == "style":
        return (
            "Other words for a style, and styles near to it, are not measured: none are known.",
        )
    given = {words.lower() for words in concept.phrases}
    target = catalog().object(label)
    listed = [words for words in (*target.synonyms, *target.implicit) if words in given]
    return (
        f"Of its {len(target.synonyms) + len(target.implicit)} synonyms and descriptions, the edit "
        f"was given {', '.join(listed) or 'none'}; the others show how far it carries over.",
        "All these wordings were in the model's training captions.",
    )


class EmojiJudge:
    """The classifier and the image-text model that ship with the bundled model."""

    name = "emoji judges"
    size = (SIZE, SIZE)
    decision = (
        "the label with the highest probability, without a threshold; for objects, 'nothing' is "
        "one of the labels"
    )

    def __init__(self) -> None:
        self._judges = load_judges()
        self.sha256 = self._judges.identity.sha256

    def judge(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> list[Judgement]:
        seen = self._judges.classify(pictures)
        objects = ranked(seen.thing_probabilities, (*self._judges.objects, NOTHING))
        styles = ranked(seen.style_probabilities, self._judges.styles)
        fits = self._judges.clip_score(pictures, prompts).tolist()
        return [
            judgement({"object": thing, "style": style}, fit)
            for thing, style, fit in zip(objects, styles, fits, strict=True)
        ]

    def read(self, judgement: Judgement) -> Judgement:
        return judgement

    def features(self, pictures: Sequence[Image.Image]) -> Tensor:
        return self._judges.features(pictures)


def _judge(options: Options, plans: Sequence[Plan]) -> EmojiJudge:
    return EmojiJudge()


SUITE = Suite(plan=plan, judge=_judge, sampler=Sampler())
