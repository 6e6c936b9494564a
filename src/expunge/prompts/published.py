"""The prompt sets that the field uses, and small ones of our own, by name.

For each, ``sets/*.yaml`` says what it is, how many rows it has, its source, its licence and its
traps. Other people's prompts are never shipped: they are read from your own copy, always through
the lexicon. Only plain sets of our own are shipped (``expunge/...``).
"""

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import as_file, files
from itertools import product
from string import Formatter
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from expunge.concepts import WordList, Words, explain
from expunge.errors import ExpungeError
from expunge.prompts.prompt_set import PromptSet, Reading
from expunge.texts import read_yaml

Named = TypeVar("Named")
Names = Mapping[str, WordList]

_NAMES = TypeAdapter(dict[str, Annotated[WordList, Field(min_length=1)]])


class Grid(BaseModel):
    """Prompts from every name, every template and every seed, in this order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    templates: Annotated[tuple[Words, ...], Field(min_length=1)]
    """Sentences with a ``{slot}`` for each list of names."""
    seeds: tuple[int, ...] | int
    """A number n stands for 0 to n - 1."""
    names: dict[str, WordList] = {}
    """Names by slot; empty if they come from your own file."""

    def prompts(self, names: Names, source: str) -> PromptSet:
        """The prompts with these names; each slot's name is in the row's ``extra``.

        Raises:
            ExpungeError: a template's slot has no names, or names have no slot.
        """
        parts = [part for text in self.templates for part in Formatter().parse(text)]
        slots = {slot for _, slot, _, _ in parts if slot}
        if missing := slots - names.keys():
            raise ExpungeError(f"{source}: no names for {min(missing)}; list them there")
        if idle := names.keys() - slots:
            raise ExpungeError(f"{source}: {min(idle)} stands in no template of this set")
        return PromptSet.of_rows(list(self._rows(names)), source)

    def _rows(self, names: Names) -> Iterator[dict[str, str]]:
        seeds = range(self.seeds) if isinstance(self.seeds, int) else self.seeds
        number = 0
        for chosen in product(*names.values()):
            cells = dict(zip(names, chosen, strict=True))
            for text, seed in product(self.templates, seeds):
                yield {
                    "case_number": str(number),
                    "prompt": text.format(**cells),
                    "evaluation_seed": str(seed),
                    **cells,
                }
                number += 1


class PublishedSet(BaseModel):
    """What is known of a prompt set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Words
    title: Words
    """What it is."""
    category: Literal["unsafe", "object", "style", "person", "character", "caption"]
    sensitive: bool = False
    """Its prompts ask for unsafe content."""
    rows: Annotated[int, Field(ge=1)]
    """Before the lexicon."""
    columns: tuple[Words, ...] = ("prompt", "evaluation_seed")
    """Required columns, for drawing, scoring or the lexicon."""
    aliases: dict[str, tuple[Words, ...]] = {}
    """Other names of these columns."""
    file: str
    """Name of the published file; "" if the set is made from templates."""
    sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{16}|[0-9a-f]{64})?$")] = ""
    """Of the published file, or its first 16 digits; "" is not pinned."""
    licence: Words
    source: Words
    traps: tuple[Words, ...] = ()
    """What has misled people before."""
    reading: Reading = Reading()
    grid: Grid | None = None
    shipped: bool = False
    """Whether it is part of the package."""

    @property
    def needs_file(self) -> bool:
        """Whether it can only be read from your own file."""
        return not self.shipped and not (self.grid and self.grid.names)


@dataclass(frozen=True)
class Loaded:
    """A prompt set as it was read, and what is known about it."""

    record: PublishedSet
    prompts: PromptSet

    @property
    def rows(self) -> int:
        """Before the lexicon."""
        return len(self.prompts) + self.prompts.dropped + self.prompts.blank

    @property
    def rows_match(self) -> bool:
        return self.rows == self.record.rows

    @property
    def sha256_matches(self) -> bool | None:
        """``None`` if the published file's hash isn't known."""
        known = self.record.sha256
        return self.prompts.sha256.startswith(known) if known else None

    @property
    def notes(self) -> tuple[str, ...]:
        """How it differs from what was published, a sentence each."""
        found = []
        if not self.rows_match:
            found.append(f"{self.rows} rows, but the published set has {self.record.rows}")
        if self.sha256_matches is False:
            found.append(
                f"its SHA-256 begins with {self.prompts.sha256[:16]}, the published file's with "
                f"{self.record.sha256[:16]}"
            )
        return tuple(found)

    def pairs(self) -> tuple[tuple[str, str], ...]:
        """(sensitive prompt, normal prompt) of every row, as Ring-A-Bell subtracts them.

        Raises:
            ExpungeError: this is no set of pairs, or a normal prompt is empty.
        """
        if "normal prompt" not in self.record.columns:
            raise ExpungeError(f"{self.record.name} holds single prompts, not pairs of them")
        found = tuple((row.prompt, row.extra["normal prompt"].strip()) for row in self.prompts)
        if empty := [row for row, pair in zip(self.prompts, found, strict=True) if not pair[1]]:
            raise ExpungeError(
                f"{self.prompts.source}: the pair {empty[0].case_number} has no normal prompt"
            )
        return found


def published(name: str, path: str | os.PathLike[str] | None = None) -> Loaded:
    """Read a prompt set by name; ``path`` is your copy of its file.

    For a set made from templates it is a YAML file of names instead, e.g. ``style: [...]``. Sets of
    our own, and sets whose names are known, need no file.

    Raises:
        ExpungeError: no such set, no file where one is needed, or a file that isn't this set's:
            unreadable, malformed, or without one of its columns.
    """
    record = published_set(name)
    if path is None and record.needs_file:
        what = "a YAML file of its names" if record.grid else f"your copy of {record.file}"
        raise ExpungeError(f"{name}: its prompts aren't shipped; give {what} ({record.source})")
    if record.grid:
        names = record.grid.names if path is None else _names(path)
        return Loaded(record, record.grid.prompts(names, str(path or name)))
    if path is not None:
        return Loaded(record, _checked(record, PromptSet.load(path, record.reading)))
    with as_file(_folder().joinpath(record.file)) as file:
        ours = replace(PromptSet.load(file, record.reading), source=name)
    return Loaded(record, _checked(record, ours))


def _checked(record: PublishedSet, prompts: PromptSet) -> PromptSet:
    for column in record.columns:
        names = (column, *record.aliases.get(column, ()))
        if not any(name in prompts.columns for name in names):
            raise ExpungeError(
                f"{prompts.source}: no column {' or '.join(names)}, so it isn't {record.name} "
                f"(columns: {', '.join(prompts.columns)})"
            )
    return prompts


def _names(path: str | os.PathLike[str]) -> Names:
    try:
        return _NAMES.validate_python(read_yaml(path, "the names"))
    except ValidationError as error:
        raise ExpungeError(
            f"{path}: write a list of names for each slot: {explain(error)}"
        ) from None


def published_set(name: str) -> PublishedSet:
    """What is known of the prompt set called ``name``.

    Raises:
        ExpungeError: there is none; the message lists near names.
    """
    return named("prompt set", published_sets(), name)


@lru_cache
def published_sets() -> Mapping[str, PublishedSet]:
    """All prompt sets by name, file by file."""
    return {name: PublishedSet(name=name, **values) for _, name, values in entries(_folder())}


def _folder() -> Any:
    return files(__package__).joinpath("sets")


def entries(folder: Any) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(stem of the file, name, values) of every entry of a folder's YAML files, sorted by file."""
    for file in sorted(folder.iterdir(), key=lambda file: str(file.name)):
        if file.name.endswith(".yaml"):
            for name, values in read_yaml(file).items():
                yield file.name.removesuffix(".yaml"), name, values


def named(noun: str, known: Mapping[str, Named], name: str) -> Named:
    """The thing called ``name``.

    Raises:
        ExpungeError: there is none; the message lists near names.
    """
    if name not in known:
        near: Sequence[str] = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or list(known)
        raise ExpungeError(f"unknown {noun} {name!r}; did you mean {', '.join(near)}?")
    return known[name]
