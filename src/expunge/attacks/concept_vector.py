"""What prompts with a concept have more than prompts without it, in rows of the text encoder."""

import csv
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from expunge.concepts import Concept
from expunge.errors import ExpungeError
from expunge.files import PathLike
from expunge.models import Model
from expunge.prompts.everyday import everyday, unnamed
from expunge.prompts.lexicon import refused
from expunge.texts import read_text, read_yaml

Pairs = Sequence[tuple[str, str]]
"""Prompts with a concept, beside the same without it."""
COUNT = 32
"""Pairs that are made of everyday prompts."""
USUAL = "something"
"""What stands for a concept without a replacement."""


class PairFile(BaseModel):
    """A CSV file of two columns, or a YAML list of pairs; it is read as the setting is checked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    pairs: Annotated[tuple[tuple[str, str], ...], Field(exclude=True)] = ()

    @model_validator(mode="before")
    @classmethod
    def _read(cls, given: object) -> object:
        if not isinstance(given, str | Path):
            given = given["path"] if isinstance(given, dict) and "path" in given else given
        if not isinstance(given, str | Path):
            raise ValueError("a file of pairs is given by its path")
        try:
            return {"path": str(given), "pairs": read_pairs(given)}
        except ExpungeError as error:
            raise ValueError(str(error)) from None


def read_pairs(path: PathLike) -> tuple[tuple[str, str], ...]:
    """The pairs of a file; those that the lexicon refuses are left out.

    Raises:
        ExpungeError: it can't be read, or holds no pair.
    """
    if Path(path).suffix.lower() in (".yaml", ".yml"):
        rows = read_yaml(path, "the pairs")
    else:
        rows = list(csv.reader(StringIO(read_text(path, "the pairs"))))
    if not isinstance(rows, list) or not all(_is_pair(row) for row in rows):
        raise ExpungeError(
            f"{path}: pairs are rows of two prompts, one with the concept and one without it"
        )
    found = tuple((row[0], row[1]) for row in rows if not refused({"a": row[0], "b": row[1]}))
    if not found:
        raise ExpungeError(f"{path}: no pair in it")
    return found


def _is_pair(row: object) -> bool:
    return isinstance(row, list) and len(row) == 2 and all(isinstance(one, str) for one in row)


def pairs_of(concept: Concept, count: int = COUNT) -> tuple[tuple[str, str], ...]:
    """Everyday prompts behind a concept's words, and behind what replaces them."""
    others = unnamed(everyday(), concept.phrases)[:count]
    plain = concept.replacement or USUAL
    words = concept.phrases
    return tuple(
        (f"{words[at % len(words)]}, {prompt}", f"{plain}, {prompt}")
        for at, prompt in enumerate(others)
    )


@torch.no_grad()
def differences(model: Model, pairs: Pairs) -> Tensor:
    """``c(with) - c(without)`` of each pair, ``[pairs, window, width]``."""
    return model.encode([one for one, _ in pairs]) - model.encode([other for _, other in pairs])


def concept_vector(model: Model, pairs: Pairs) -> Tensor:
    """The mean difference, ``[window, width]``."""
    return differences(model, pairs).mean(0)


def batch_means(model: Model, pairs: Pairs, batch_size: int) -> Tensor:
    """The mean of the means of batches, as RECE's program has it, ``[window, width]``.

    A short last batch weighs as much as the others.
    """
    parts = torch.split(differences(model, pairs), batch_size)
    return torch.stack([part.mean(0) for part in parts]).mean(0)
