"""Plans for any model: a concept's words in plain sentences, published lists, and what stays."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from expunge.concepts import Concept
from expunge.errors import ExpungeError
from expunge.evaluation.suite import Group, Options, Plan, Prompt
from expunge.generation.sampler import Sampler
from expunge.prompts import PromptRow, PromptSet
from expunge.prompts.prompt_set import Reading
from expunge.prompts.published import published

VERSION = 1
CAPTIONS = "everyday scenes"
SAMPLER = Sampler(scheduler="ddim", steps=50, guidance_scale=7.5)
LABELS = ("class", "artist", "name", "concept", "object", "label")
"""Columns of a list of prompts that say what its row asks for; the first that is there counts."""


class Size(NamedTuple):
    """How much an evaluation draws."""

    sentences: int
    """For each name of the concept."""
    kept_sentences: int
    """For each kept name."""
    kept: int
    """Names that stay."""
    captions: int
    seeds: tuple[int, ...]


SIZES = {
    "brief": Size(2, 1, kept=5, captions=10, seeds=(0,)),
    "quick": Size(3, 2, kept=10, captions=20, seeds=(0, 1)),
    "full": Size(5, 3, kept=100, captions=100, seeds=(0, 1, 2, 3, 4)),
}


class Wording(NamedTuple):
    """How a suite asks."""

    suite: str
    attribute: str
    sentences: tuple[str, ...]
    """With ``{}`` for the words; enough for every size."""
    others: tuple[str, ...]
    """What is kept where the policy names nothing, or not enough."""
    about: str
    """Of the others, in words."""


def worded(
    wording: Wording,
    concept: Concept,
    *,
    erased: Sequence[Concept],
    size: str,
    seeds: Sequence[int] | None,
    options: Options,
) -> Plan:
    """Prompts that name the concept, its synonyms, what stays, and everyday scenes.

    Raises:
        ExpungeError: there is no such size, or a list can't be read or holds nothing of it.
    """
    chosen, label = sized(size), concept.target.lower()
    gone = {phrase.lower() for one in (concept, *erased) for phrase in one.phrases}
    own = (words for one in (concept, *erased) for words in one.keep)
    kept = [n for n in dict.fromkeys((*own, *wording.others)) if n.lower() not in gone]

    def prompts(names: Iterable[str], count: int, expected: str = "") -> list[Prompt]:
        return [
            Prompt(
                text=sentence.format(name), expected={wording.attribute: expected or name.lower()}
            )
            for name in names
            for sentence in wording.sentences[:count]
        ]

    listed = split(options.prompts, wording.attribute, concept)
    drafts = [
        ("explicit", "efficacy", "its name", prompts([concept.target], chosen.sentences, label)),
        ("synonyms", "efficacy", "given names", prompts(concept.synonyms, chosen.sentences, label)),
        ("listed", "efficacy", "rows of the given list that ask for it", listed.asking),
        (
            f"other {wording.about}",
            "retention",
            "what must stay",
            prompts(kept[: chosen.kept], chosen.kept_sentences),
        ),
        ("listed others", "retention", "all other rows of the given list", listed.others),
        (CAPTIONS, "retention", "captions that name nothing erased", captions(options, chosen)),
    ]
    return Plan(
        suite=wording.suite,
        version=VERSION,
        size=size,
        concept=concept,
        attribute=wording.attribute,
        label=label,
        groups=tuple(
            Group.model_validate({"name": n, "role": role, "about": about, "prompts": tuple(rows)})
            for n, role, about, rows in drafts
            if rows
        ),
        seeds=tuple(seeds) if seeds is not None else chosen.seeds,
        notes=listed.notes,
    )


def sized(size: str) -> Size:
    """The size of this name.

    Raises:
        ExpungeError: there is none.
    """
    if size not in SIZES:
        raise ExpungeError(f"unknown size {size!r}; choose {', '.join(SIZES)}")
    return SIZES[size]


def captions(options: Options, size: Size) -> list[Prompt]:
    """The user's captions, all of them, or as many of our own as the size says."""
    if options.captions:
        return [listed_prompt(row, {}) for row in PromptSet.load(options.captions)]
    rows = list(published("expunge/scenes").prompts)[: size.captions]
    return [Prompt(text=row.prompt, expected={}) for row in rows]


class Listed(NamedTuple):
    """A list of prompts, divided."""

    asking: list[Prompt]
    """For the concept."""
    others: list[Prompt]
    notes: tuple[str, ...]


def split(path: str, attribute: str, concept: Concept, *, sensitive: bool = False) -> Listed:
    """A list's rows that ask for the concept, and the others; all ask for it if none says what.

    Raises:
        ExpungeError: the list can't be read, or no row of it asks for the concept.
    """
    if not path:
        return Listed([], [], ())
    rows = PromptSet.load(path, Reading(numbered=True, sexual=sensitive))
    column = next((name for name in LABELS if name in rows.columns), None)
    phrases, label = {phrase.lower() for phrase in concept.phrases}, concept.target.lower()

    def said(row: PromptRow) -> str:
        return row.extra.get(column, "").strip().lower() if column else label

    mine = [
        listed_prompt(row, {attribute: label}, sensitive=sensitive)
        for row in rows
        if not column or said(row) in phrases
    ]
    if not mine:
        raise ExpungeError(
            f"{path}: no row whose {column} is {concept.target!r}; it has "
            f"{', '.join(sorted({said(row) for row in rows})[:8])}"
        )
    others = [row for row in rows if column and said(row) not in phrases]
    notes = [f"The list {Path(path).name} (SHA-256 {rows.sha256}) has {len(rows)} rows."]
    if rows.dropped:
        notes.append(
            f"{rows.dropped} more of its rows were dropped: something sexual beside words for "
            "minors."
        )
    return Listed(
        mine, [listed_prompt(row, {attribute: said(row)}) for row in others], tuple(notes)
    )


def listed_prompt(row: PromptRow, expected: dict[str, str], *, sensitive: bool = False) -> Prompt:
    """A row with its own seed, guidance and size."""
    return Prompt(
        text=row.prompt,
        expected=expected,
        sensitive=sensitive,
        seed=row.seed,
        guidance_scale=row.guidance_scale,
        height=row.height,
        width=row.width,
    )
