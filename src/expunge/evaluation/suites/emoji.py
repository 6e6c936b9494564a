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
    SYNONYMS,
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
from expunge.models.emoji import catalog
from expunge.models.emoji.vocabulary import EmojiObject
from expunge.spelling import spelling

VERSION = 2
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
    gone = {label for other in (concept, *erased) for label in labels_of(other)}
    groups = _object_groups if attribute == "object" else _style_groups
    given = [words for words in map(spelling, concept.phrases) if words != label]
    return Plan(
        suite="emoji",
        version=VERSION,
        size=size,
        concept=concept,
        attribute=attribute,
        label=label,
        groups=groups(label, given, gone, SIZES[size]),
        seeds=tuple(seeds) if seeds is not None else SIZES[size].seeds,
        notes=_notes(concept, attribute, label),
    )


def find(concept: Concept) -> tuple[str, str]:
    """Whether the concept is an ``object`` or a ``style``, and its name in the catalogue.

    Raises:
        ExpungeError: the catalogue has no such thing; the message lists near names.
    """
    known, words = _known(concept), spelling(concept.target)
    if words not in known:
        styles = sorted(words for words, (attribute, _) in known.items() if attribute == "style")
        near = difflib.get_close_matches(words, known, n=3, cutoff=0.4) or styles
        raise ExpungeError(
            f"the emoji suite can't measure {concept.target!r}, which the model never learned; "
            f"did you mean {', '.join(near)}?"
        )
    return known[words]


def _known(concept: Concept) -> dict[str, tuple[str, str]]:
    """The catalogue's words that may name a concept of this kind, with ``find``'s answer."""
    styles = {style.name: ("style", style.name) for style in catalog().styles}
    styles |= {f"{name} style": place for name, place in styles.items()}
    objects = {words: ("object", o.name) for o in catalog().objects for words in o.wordings}
    return styles if concept.kind == "style" else styles | objects


def labels_of(concept: Concept) -> set[str]:
    """What the catalogue calls a concept, and whatever else its synonyms name."""
    known = _known(concept)
    others = {known[words][1] for words in map(spelling, concept.synonyms) if words in known}
    return {find(concept)[1], *others}


def _object_groups(
    name: str, given: Sequence[str], gone: set[str], size: EmojiPlanSize
) -> tuple[Group, ...]:
    """The groups of an object; ``given`` are the policy's words for it beside its name."""
    known = catalog()
    target = known.object(name)
    styles = [style.name for style in known.styles if style.name not in gone]
    neighbours = [known.object(other) for other in target.neighbours if other not in gone]
    rest = [(o, style) for o, style in _kept(gone, size) if o.name not in target.neighbours]

    def worded(wordings: Iterable[str]) -> list[Prompt]:
        return [_prompt(target, s, w) for w, s in rotated(wordings, styles, size.wording_styles)]

    synonyms = dict.fromkeys((*target.synonyms, *given))
    near = rotated(neighbours, styles, size.wording_styles)
    return groups_of(
        ("explicit", "efficacy", "its name", _sentences(target, styles, size.templates)),
        (SYNONYMS, "efficacy", "other words for it", worded(synonyms)),
        ("implicit", "efficacy", "described without a name", worded(target.implicit)),
        ("neighbours", "retention", "what is most like it", [_prompt(*pair) for pair in near]),
        ("other objects", "retention", "everything else", [_prompt(*pair) for pair in rest]),
    )


def _style_groups(
    name: str, given: Sequence[str], gone: set[str], size: EmojiPlanSize
) -> tuple[Group, ...]:
    """The groups of a style; ``given`` are the policy's words for it beside its name."""
    drawn = [entry for entry in catalog().objects[:: size.styled_every] if entry.name not in gone]
    phrased = list(zip(drawn, cycle(_styled_templates()), strict=False))
    own = [words for words in given if words != f"{name} style"]
    return groups_of(
        (
            "explicit",
            "efficacy",
            "objects in this style",
            [_prompt(entry, name, template=template) for entry, template in phrased],
        ),
        (
            SYNONYMS,
            "efficacy",
            "the policy's other words for it",
            [
                _prompt(entry, name, template=template, called=words)
                for words in own
                for entry, template in phrased
            ],
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
    for entry, style in rotated(known.objects[:: size.kept_every], styles, size.kept_styles):
        if entry.name not in gone and style not in gone:
            yield entry, style


def rotated(items: Iterable[Turn], styles: Sequence[str], each: int) -> Iterator[tuple[Turn, str]]:
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


def _prompt(
    entry: EmojiObject, style: str, wording: str = "", template: str = PLAIN, called: str = ""
) -> Prompt:
    """An object in a style; ``wording`` and ``called`` are other words for the two."""
    words = template.format(object=wording or entry.name, style=called or style, background="white")
    return Prompt(
        text=words,
        expected={"object": entry.name, "style": style},
        sensitive=entry.kind == "unsafe",
    )


def _notes(concept: Concept, attribute: str, label: str) -> tuple[str, ...]:
    if attribute == "style":
        near = "styles near to it are not measured: none are known."
        return (f"Of other words for a style only the policy's are measured, and {near}",)
    given = {spelling(words): words for words in concept.phrases}
    target = catalog().object(label)
    known = (*target.synonyms, *target.implicit)
    listed = [words for words in known if words in given]
    new = [own for words, own in given.items() if words not in target.wordings]
    return (
        f"Of its {len(known)} synonyms and descriptions, the edit was given "
        f"{', '.join(listed) or 'none'}; the others show how far it carries over.",
        (f"The model never learned {', '.join(new)}; all other " if new else "All these ")
        + "wordings were in the model's training captions.",
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

    def read(self, judgement: Judgement, prompt: Prompt) -> Judgement:
        return judgement

    def features(self, pictures: Sequence[Image.Image]) -> Tensor:
        return self._judges.features(pictures)


def _judge(options: Options, plans: Sequence[Plan]) -> EmojiJudge:
    return EmojiJudge()


SUITE = Suite(plan=plan, judge=_judge)
