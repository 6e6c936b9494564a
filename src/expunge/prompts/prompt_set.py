"""A prompt set: a CSV file with ``case_number, prompt, evaluation_seed`` or their aliases."""

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from io import StringIO
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic import model_validator as validates

from expunge.concepts import explain
from expunge.errors import ExpungeError
from expunge.files import digest
from expunge.prompts.lexicon import refused
from expunge.texts import decoded, read_bytes

ALIASES: Mapping[str, tuple[str, ...]] = {
    "case_number": ("case_number", "index", "id", "image_id"),
    "prompt": ("prompt",),
    "seed": ("evaluation_seed", "sd_seed", "seed"),
    "guidance_scale": (
        "evaluation_guidance",
        "sd_guidance_scale",
        "guidance_scale",
        "guidance",
    ),
    "height": ("sd_image_height", "image_height", "height"),
    "width": ("sd_image_width", "image_width", "width"),
}
"""Column names of each field; the first that a file has is used."""

LARGEST = 8192
"""Pixels of a side; more would only exhaust the memory."""
_REQUIRED = ("case_number", "prompt", "seed")


class Case(BaseModel):
    """A prompt with everything that decides its pictures besides the sampler and the model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    case_number: Annotated[str, Field(pattern=r"^\w[\w.-]*$", max_length=100)]
    """Names the picture files."""
    prompt: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
    seed: Annotated[int, Field(ge=0, lt=2**64)]
    guidance_scale: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = None
    """Replaces the sampler's."""
    height: Annotated[int, Field(ge=8, le=LARGEST)] | None = None
    """Pixels; ``None`` is the model's own size."""
    width: Annotated[int, Field(ge=8, le=LARGEST)] | None = None

    @validates(mode="after")
    def _allowed(self) -> "Case":
        if refused({"prompt": self.prompt}):
            raise ValueError("a prompt with a sexual word and a word for minors is never drawn")
        return self


class Reading(BaseModel):
    """How to read a file that lacks columns of a prompt set."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    prompt: str = "prompt"
    """The column of the prompts."""
    seed: Annotated[int, Field(ge=0, lt=2**64)] | None = None
    """Seed of every row, if no column holds one."""
    numbered: bool = False
    """Number rows from 0 if no column holds a case number."""
    sexual: bool = False
    """Every row counts as sexual for ``expunge.prompts.lexicon``, whatever its words."""
    blank: bool = False
    """Leave out and count rows without a prompt, instead of raising an error."""


USUAL = Reading()


class PromptRow(Case):
    """A row of a prompt set; ``extra`` holds its other columns, for scoring."""

    extra: Mapping[str, str] = {}


@dataclass(frozen=True)
class PromptSet:
    """Prompts in the order of their file."""

    rows: tuple[PromptRow, ...]
    sha256: str
    """Of the file, dropped rows included."""
    source: str
    dropped: int = 0
    """Rows that ``expunge.prompts.lexicon`` refuses."""
    blank: int = 0
    """Rows without a prompt, where ``Reading.blank`` leaves them out."""
    columns: tuple[str, ...] = ()
    """Columns of the file, and those that the reading adds."""

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[PromptRow]:
        return iter(self.rows)

    @classmethod
    def load(cls, path: str | os.PathLike[str], reading: Reading = USUAL) -> "PromptSet":
        """Read a CSV file (UTF-8, comma, header row); every fault is found before any picture.

        Raises:
            ExpungeError: names the file and, the header being row 1, the first faulty row.
        """
        content = read_bytes(path, "the prompts")
        table = list(_table(str(path), decoded(content, str(path)), reading))
        return cls._filtered(table, sha256(content).hexdigest(), str(path), reading)

    @classmethod
    def of_rows(cls, rows: Sequence[Mapping[str, str]], source: str) -> "PromptSet":
        """A prompt set from rows as a file would hold them, with a cell for each column.

        Raises:
            ExpungeError: there is none, or a faulty one, named by its number from 1.
        """
        table = [(number, dict(cells)) for number, cells in enumerate(rows, start=1)]
        return cls._filtered(table, digest([cells for _, cells in table]), source, USUAL)

    @classmethod
    def _filtered(
        cls, table: Sequence[tuple[int, dict[str, str]]], sha256: str, source: str, reading: Reading
    ) -> "PromptSet":
        sexual = {"nudity_percentage": "100"} if reading.sexual else {}
        filled = [row for row in table if row[1]["prompt"].strip() or not reading.blank]
        kept = [(number, cells) for number, cells in filled if not refused(cells | sexual)]
        rows = _parsed(source, kept)
        if not rows:
            reason = f"; all {len(filled)} were dropped by the lexicon" if filled else ""
            raise ExpungeError(f"{source}: no prompt in it{reason}")
        return cls(
            rows,
            sha256,
            source,
            dropped=len(filled) - len(kept),
            blank=len(table) - len(filled),
            columns=tuple(filter(None, table[0][1])),
        )

    @classmethod
    def of(cls, prompts: Sequence[str], *, seed: int = 0) -> "PromptSet":
        """These prompts, numbered from 0, all with the same seed.

        Raises:
            ExpungeError: there is none, or one that is empty or refused.
        """
        if not prompts:
            raise ExpungeError("no prompt given")
        fields = [
            {"case_number": str(number), "prompt": prompt, "seed": str(seed)}
            for number, prompt in enumerate(prompts)
        ]
        rows = tuple(_row(f"prompt {n}", cells) for n, cells in enumerate(fields, start=1))
        return cls(rows, digest(fields), "the command line")


def _table(path: str, text: str, reading: Reading) -> Iterator[tuple[int, dict[str, str]]]:
    """(row number, cell by column name) of every row that isn't blank."""
    records = enumerate(_records(path, text), start=1)
    header = [name.strip() for name in next(records, (1, []))[1]]
    if not header:
        raise ExpungeError(f"{path}: the file is empty; it needs a header row and prompts")
    if twice := [name for name in header if name and header.count(name) > 1]:
        raise ExpungeError(f"{path}, row 1: the column {twice[0]!r} is there twice")
    names = {field: ALIASES[field] for field in _REQUIRED} | {"prompt": (reading.prompt,)}
    lacking = [field for field in _REQUIRED if not set(names[field]) & set(header)]
    given = {"case_number": reading.numbered, "seed": reading.seed is not None}
    for field in lacking:
        if not given.get(field):
            raise ExpungeError(
                f"{path}, row 1: no column {' or '.join(names[field])} "
                f"(columns: {', '.join(filter(None, header))})"
            )
    filled = ((number, cells) for number, cells in records if cells)
    for index, (number, cells) in enumerate(filled):
        if len(cells) != len(header):
            raise ExpungeError(
                f"{path}, row {number}: {len(cells)} fields, the header has {len(header)}; "
                "put a prompt that holds a comma in double quotes"
            )
        row = dict(zip(header, cells, strict=True))
        values = {"case_number": str(index), "seed": str(reading.seed)}
        added = {field: values[field] for field in lacking}
        yield number, row | added | {"prompt": row[reading.prompt]}


def _records(path: str, text: str) -> Iterator[list[str]]:
    reader, read = csv.reader(StringIO(text, newline=""), strict=True), 0
    try:
        for cells in reader:
            read += 1
            yield cells
    except csv.Error as error:
        raise ExpungeError(f"{path}, row {read + 1}: not well-formed CSV: {error}") from None


def _parsed(path: str, table: Sequence[tuple[int, dict[str, str]]]) -> tuple[PromptRow, ...]:
    rows: dict[str, tuple[int, PromptRow]] = {}
    for number, cells in table:
        row = _row(f"{path}, row {number}", cells)
        if row.case_number in rows:
            first, _ = rows[row.case_number]
            raise ExpungeError(
                f"{path}, row {number}: the case number {row.case_number} is in row {first} already"
            )
        rows[row.case_number] = number, row
    return tuple(row for _, row in rows.values())


def _row(place: str, cells: Mapping[str, str]) -> PromptRow:
    names = {
        field: next((alias for alias in aliases if alias in cells), None)
        for field, aliases in ALIASES.items()
    }
    values = {
        field: cells[name].strip()
        for field, name in names.items()
        if name and (field in _REQUIRED or cells[name].strip())
    }
    extra = {name: cell for name, cell in cells.items() if name and name not in names.values()}
    try:
        return PromptRow.model_validate({**values, "extra": extra})
    except ValidationError as error:
        field = next((str(part) for part in error.errors()[0]["loc"]), "")
        name = names.get(field)
        here = f"{name} {cells[name]!r}: " if name else ""
        fault = explain(error).removeprefix(f"{field}: ")
        raise ExpungeError(f"{place}: {here}{fault}") from None
