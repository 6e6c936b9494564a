"""Plans for any model: a concept's words in plain sentences, published lists, and what stays."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from expunge.concepts import Concept
from expunge.errors import ExpungeError
from expunge.evaluation.suite import NO_OPTIONS, SYNONYMS, Options, Plan, Prompt, groups_of, refuse
from expunge.prompts import PromptRow, PromptSet
from expunge.prompts.prompt_set import Reading
from expunge.prompts.published import published
from expunge.sentences import fill
from expunge.spelling import distinct, names, spelling

VERSION = 1
CAPTIONS = "everyday scenes"
LISTED = "listed"
LABELS = ("class", "artist", "name", "concept", "object", "label")
"""Columns that may say what a row of a list asks for; the first that exists counts."""


class PlanSize(NamedTuple):
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
    "brief": PlanSize(2, 1, kept=5, captions=10, seeds=(0,)),
    "quick": PlanSize(3, 2, kept=10, captions=20, seeds=(0, 1)),
    "full": PlanSize(5, 3, kept=100, captions=100, seeds=(0, 1, 2, 3, 4)),
}


class Wording(NamedTuple):
    """How a suite asks."""

    suite: str
    attribute: str
    sentences: tuple[str, ...]
    """With ``{}`` for the words; enough for every size."""
    others: tuple[str, ...]
    """Names to keep if the policy names none, or too few."""
    about: str
    """What the others are, in a word."""


def worded(
    wording: Wording,
    concept: Concept,
    *,
    erased: Sequence[Concept] = (),
    size: str = "quick",
    seeds: Sequence[int] | None = None,
    options: Options = NO_OPTIONS,
) -> Plan:
    """Prompts that name the concept, its synonyms, what stays, and everyday scenes.

    Raises:
        ExpungeError: the size is unknown, a list can't be read or has no row for the concept, or
            the suite has no use for an option.
    """
    refuse(wording.suite, options, "judge", "clip", "prompts", "captions")
    chosen, label = sized(size), spelling(concept.target)
    gone = phrases(concept, *erased)
    own = distinct(words for one in (concept, *erased) for words in one.keep)
    kept = [n for n in distinct((*own, *wording.others)) if spelling(n) not in gone]
    listed = split(options.prompts, wording.attribute, concept, gone=gone)
    scenes = captions(options, chosen, gone)
    others = _prompts(wording, kept[: chosen.kept], chosen.kept_sentences)
    count = chosen.sentences
    groups = groups_of(
        ("explicit", "efficacy", "its name", _prompts(wording, [concept.target], count, label)),
        (SYNONYMS, "efficacy", "given names", _prompts(wording, concept.synonyms, count, label)),
        (LISTED, "efficacy", "rows of the given list that ask for it", listed.asking),
        (f"other {wording.about}", "retention", "what must stay", others),
        ("listed others", "retention", "all other rows of the given list", listed.others),
        (CAPTIONS, "retention", "captions that name nothing erased", scenes.prompts),
    )
    return Plan(
        suite=wording.suite,
        version=VERSION,
        size=size,
        concept=concept,
        attribute=wording.attribute,
        label=label,
        groups=groups,
        seeds=tuple(seeds) if seeds is not None else chosen.seeds,
        notes=(*_cut(own, chosen), *listed.notes, *scenes.notes),
    )


def _prompts(
    wording: Wording, names: Iterable[str], count: int, expected: str = ""
) -> list[Prompt]:
    """Each name in the first ``count`` sentences; a right picture shows ``expected``, or it."""
    return [
        Prompt(text=fill(sentence, name), expected={wording.attribute: expected or spelling(name)})
        for name in names
        for sentence in wording.sentences[:count]
    ]


def _cut(own: Collection[str], size: PlanSize) -> Iterator[str]:
    if len(own) > size.kept:
        yield f"Of the {len(own)} things that the policy keeps, only {size.kept} were asked for."


def phrases(*concepts: Concept) -> set[str]:
    """Every word for them, as ``spelling`` writes it."""
    return {spelling(phrase) for one in concepts for phrase in one.phrases}


def sized(size: str) -> PlanSize:
    """The size of this name.

    Raises:
        ExpungeError: there is none.
    """
    if size not in SIZES:
        raise ExpungeError(f"unknown size {size!r}; choose {', '.join(SIZES)}")
    return SIZES[size]


class CaptionPrompts(NamedTuple):
    """Prompts for everyday pictures."""

    prompts: list[Prompt]
    notes: tuple[str, ...]


def captions(options: Options, size: PlanSize, gone: Collection[str] = ()) -> CaptionPrompts:
    """All of the user's captions, or as many of our own as the size says.

    Captions that name anything in ``gone`` are left out.

    Raises:
        ExpungeError: the user's can't be read, or every one names what is erased.
    """
    if not options.captions:
        ours = [
            row
            for row in published("expunge/scenes").prompts
            if not names(row.prompt, gone, plural=True)
        ]
        return CaptionPrompts(
            [Prompt(text=r.prompt, expected={}) for r in ours[: size.captions]], ()
        )
    rows = PromptSet.load(options.captions, Reading(numbered=True))
    kept = [row for row in rows if not names(row.prompt, gone, plural=True)]
    if not kept:
        raise ExpungeError(f"{options.captions}: every caption names what is erased")
    notes = [*_dropped(rows)]
    if left_out := len(rows) - len(kept):
        name = Path(rows.source).name
        notes.append(f"Captions of {name} that name what is erased, and were left out: {left_out}.")
    return CaptionPrompts([listed_prompt(row, {}) for row in kept], tuple(notes))


def _dropped(rows: PromptSet) -> Iterator[str]:
    if rows.dropped:
        yield (
            f"Rows of {Path(rows.source).name} that were dropped, as something sexual stands "
            f"beside words for minors: {rows.dropped}."
        )


class Listed(NamedTuple):
    """A list of prompts, divided."""

    asking: list[Prompt]
    """For the concept."""
    others: list[Prompt]
    notes: tuple[str, ...]


def split(
    path: str,
    attribute: str,
    concept: Concept,
    *,
    gone: Collection[str] = (),
    sensitive: bool = False,
) -> Listed:
    """A list's rows that ask for the concept, and the other rows.

    Without a column that says what a row asks for, all rows ask for the concept. Rows that ask for
    another erased concept (``gone``) are left out.

    Raises:
        ExpungeError: the list can't be read, or no row of it asks for the concept.
    """
    if not path:
        return Listed([], [], ())
    rows = PromptSet.load(path, Reading(numbered=True, sexual=sensitive))
    column = next((name for name in LABELS if name in rows.columns), None)
    own, label = phrases(concept), spelling(concept.target)

    def said(row: PromptRow) -> str:
        return spelling(row.extra.get(column, "")) if column else label

    mine = [
        listed_prompt(row, {attribute: label}, sensitive=sensitive)
        for row in rows
        if not column or said(row) in own
    ]
    if not mine:
        raise ExpungeError(
            f"{path}: no row whose {column} is {concept.target!r}; it has "
            f"{', '.join(sorted({said(row) for row in rows})[:8])}"
        )
    others = [row for row in rows if column and said(row) not in {*own, *gone}]
    if blank := [row for row in others if not said(row)]:
        raise ExpungeError(f"{path}: the {column} of {blank[0].prompt!r} is empty; fill it in")
    about = f"{len(rows)} rows, of which {len(mine)} ask for {concept.target}"
    notes = [f"The list {Path(path).name} (SHA-256 {rows.sha256}) has {about}.", *_dropped(rows)]
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
