"""Plain lists in files: captions, sentences around words, and words with their replacements."""

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from expunge.concepts import Concept, Context, Kind, Words, explain
from expunge.errors import ExpungeError
from expunge.files import PathLike
from expunge.prompts.lexicon import refused
from expunge.texts import read_text

COLUMNS = ("prompt", "caption", "text")
"""Columns that may hold the captions of a CSV file; the first that exists is used."""


@dataclass(frozen=True)
class Captions:
    """Captions in the order of their file."""

    prompts: tuple[str, ...]
    dropped: int
    """Captions that ``expunge.prompts.lexicon`` refuses."""


@dataclass(frozen=True)
class Replacements:
    """Pairs of words to erase and safe words, in the order of their file."""

    pairs: tuple[tuple[str, str], ...]
    dropped: int
    """Pairs that ``expunge.prompts.lexicon`` refuses."""

    def concepts(self, kind: Kind = "object") -> tuple[Concept, ...]:
        """One concept for all words with the same replacement: the first is its target."""
        groups: dict[str, list[str]] = {}
        for words, safe in self.pairs:
            groups.setdefault(safe, []).append(words)
        return tuple(
            Concept(target=words[0], synonyms=tuple(words[1:]), kind=kind, anchor=safe)
            for safe, words in groups.items()
        )


def captions(path: PathLike) -> Captions:
    """Read captions: the lines of a ``.txt`` file, or a column of a ``.csv`` file.

    Raises:
        ExpungeError: the file can't be read, is neither, or holds no caption.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in (".txt", ".csv"):
        raise ExpungeError(f"{path}: captions come in a .txt or a .csv file")
    rows = list((_csv_rows if suffix == ".csv" else _text_rows)(path))
    allowed = tuple(caption for caption, cells in rows if not refused(cells))
    if not allowed:
        reason = f"; all {len(rows)} were dropped by the lexicon" if rows else ""
        raise ExpungeError(f"{path}: no caption in it{reason}")
    return Captions(allowed, len(rows) - len(allowed))


def lines(path: PathLike) -> tuple[str, ...]:
    """Read the lines of a text file, without blank ones.

    Raises:
        ExpungeError: the file can't be read.
    """
    return tuple(line for line in read_text(path).splitlines() if line.strip())


def contexts(path: PathLike) -> tuple[Context, ...]:
    """Read sentences with ``{}`` for the words, one a line.

    Raises:
        ExpungeError: the file can't be read, is empty, or a line doesn't hold ``{}`` once.
    """
    lines = [line.strip() for line in read_text(path).splitlines()]
    try:
        found = TypeAdapter(tuple[Context, ...]).validate_python([line for line in lines if line])
    except ValidationError as error:
        raise ExpungeError(f"{path}: {explain(error).partition(': ')[2]}") from None
    if not found:
        raise ExpungeError(f"{path}: no sentence in it")
    return found


def replacements(path: PathLike) -> Replacements:
    """Read a JSON list of ``[words to erase, safe words]``.

    Raises:
        ExpungeError: the file can't be read or isn't such a list.
    """
    try:
        content = json.loads(read_text(path))
        rows = TypeAdapter(list[tuple[Words, str]]).validate_python(content)
    except json.JSONDecodeError as error:
        raise ExpungeError(f"{path}: not a JSON file: {error}") from None
    except ValidationError as error:
        raise ExpungeError(
            f"{path}: not a list of [words to erase, safe words]: {explain(error)}"
        ) from None
    allowed = tuple(row for row in rows if not refused({"prompt": " ".join(row)}))
    if not allowed:
        reason = f"; all {len(rows)} were dropped by the lexicon" if rows else ""
        raise ExpungeError(f"{path}: no pair in it{reason}")
    return Replacements(allowed, len(rows) - len(allowed))


def _text_rows(path: PathLike) -> Iterator[tuple[str, Mapping[str, str]]]:
    for line in read_text(path).splitlines():
        if line.strip():
            yield line.strip(), {"prompt": line}


def _csv_rows(path: PathLike) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Each caption with all cells of its row."""
    reader = csv.DictReader(StringIO(read_text(path), newline=""), strict=True, restval="")
    try:
        header = [name.strip() for name in reader.fieldnames or ()]
        column = next((name for name in COLUMNS if name in header), None)
        if column is None:
            raise ExpungeError(f"{path}: no column {' or '.join(COLUMNS)} (columns: {header})")
        reader.fieldnames = header
        for cells in reader:
            if None in cells:
                raise ExpungeError(
                    f"{path}, line {reader.line_num}: more fields than the header has; put a "
                    "caption that holds a comma in double quotes"
                )
            if cells[column].strip():
                yield cells[column].strip(), cells
    except csv.Error as error:
        raise ExpungeError(f"{path}, line {reader.line_num}: not well-formed: {error}") from None
