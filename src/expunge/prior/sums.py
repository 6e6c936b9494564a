"""A prior: the second moment of a text encoder's embeddings over many prompts.

Methods that hold everything but the erased words still (MACE, TRCE) ask that the keys and values
of ordinary captions stay. All they need to know of the captions is one matrix::

    C = sum over prompts and positions of e e^T

with the rows ``e`` of the text encoder's output. For hundreds of thousands of captions it takes
long to compute, but fits in a small file. It depends on the text encoder, not on the UNet: every
fine-tuned model with the same text encoder can use it.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    InstanceOf,
    PlainSerializer,
    TypeAdapter,
    ValidationError,
)
from torch import Tensor

from expunge.algebra.ridge import gram
from expunge.concepts import explain
from expunge.errors import ExpungeError
from expunge.files import PathLike, digest
from expunge.models import Model
from expunge.progress import track
from expunge.settings import or_file
from expunge.tensors import read, write

MOMENT_BATCH = 16
"""Prompts encoded at a time for a moment; in double precision their rows take 8 MB for SD 1."""
BATCH = 64
"""Prompts encoded at a time."""
SAVE_EVERY = 30.0
"""Seconds between two checkpoints of an unfinished prior."""
GRAM, HEADER = "gram", "expunge.prior"
"""Name of the sum, and the entry of the header that holds the metadata."""


class Metadata(BaseModel):
    """Where a prior comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text_encoder: str
    """SHA-256 of the text encoder's weights (see ``Model.text_fingerprint``)."""
    prompts: str | None
    """SHA-256 of the prompts; ``None`` for an old cache, where it isn't known."""
    count: int = Field(ge=1)
    """How many prompts; for an old cache an estimate, to a few percent."""
    positions: int = Field(ge=1)
    """Rows of a prompt."""
    versions: dict[str, str]
    padding: int | None = Field(default=None, ge=1)
    """Rows of padding that were encoded of each prompt; the last stands for those left out.
    ``None``: all."""


@dataclass(frozen=True, eq=False)
class Prior:
    """The second moment of many prompts' embeddings."""

    gram: Tensor
    """``C``, the sum of ``e e^T`` over all rows of all prompts, ``[width, width]`` float64."""
    metadata: Metadata

    @property
    def mean(self) -> Tensor:
        """``C`` of an average prompt: the sum over its rows, ``[width, width]`` float64."""
        return self.gram / self.metadata.count

    @classmethod
    def of(
        cls,
        model: Model,
        prompts: Sequence[str],
        *,
        padding: int | None = None,
        checkpoint: PathLike | None = None,
    ) -> "Prior":
        """The prior of ``prompts``.

        Args:
            model: its text encoder reads the prompts.
            prompts: captions of ordinary pictures; duplicates count each time.
            padding: rows of padding to encode of each prompt, of which the last stands for those
                left out; for short prompts a fraction of the work. Default: all.
            checkpoint: a ``.safetensors`` file for the state of a run. If it exists, the run
                continues from it, to the same sum bit for bit.

        Raises:
            ExpungeError: there is no prompt, or the checkpoint is of another run.
        """
        if not prompts:
            raise ExpungeError("no prompt given; a prior needs captions of ordinary pictures")
        metadata = Metadata(
            text_encoder=model.text_fingerprint(),
            prompts=digest(list(prompts)),
            count=len(prompts),
            positions=model.encode(prompts[:1]).shape[1],
            versions=made_with(),
            padding=padding,
        )
        if padding is not None:  # prompts of one length are encoded side by side
            prompts = sorted(prompts, key=model.last_token)
        total = torch.zeros(model.text_width, model.text_width, dtype=torch.float64)
        done = 0
        if checkpoint and Path(checkpoint).exists():
            total, done = _restore(checkpoint, metadata)
        starts = range(done, len(prompts), BATCH)
        saved = time.monotonic()
        for start in track(
            starts, "captions", total=-(-len(prompts) // BATCH), start=done // BATCH
        ):
            block = prompts[start : start + BATCH]
            total = total + gram(torch.cat(weighed(model, block, padding))).cpu()
            if checkpoint and time.monotonic() - saved >= SAVE_EVERY:
                _write(checkpoint, total, metadata, done=start + len(block))
                saved = time.monotonic()
        return cls(sound(total, "these prompts"), metadata)

    def save(self, path: PathLike) -> None:
        """Write one safetensors file, whole or not at all."""
        _write(path, self.gram, self.metadata)

    @classmethod
    def load(cls, path: PathLike) -> "Prior":
        """Read a prior that ``save`` wrote.

        Raises:
            ExpungeError: there is no such file, or it isn't a whole prior.
        """
        total, metadata, done = _read(path)
        if done is not None:
            raise ExpungeError(
                f"{path}: the state of an unfinished prior, {done} of {metadata.count} prompts; "
                "finish it first"
            )
        return cls(total, metadata)

    def check(self, model: Model) -> None:
        """Check that the prior was made with this model's text encoder.

        Raises:
            ExpungeError: it was made with another one.
        """
        if self.metadata.text_encoder != model.text_fingerprint():
            raise ExpungeError(
                f"this prior is of another text encoder than that of {model.name!r}; make one "
                'with "expunge prior" and this model'
            )


def weighed(model: Model, prompts: Sequence[str], padding: int | None) -> list[Tensor]:
    """The rows of each prompt times the root of how many they stand for, ``[rows, width]``.

    ``padding`` is that of ``Prior.of``.
    """
    if padding is None:
        return list(model.encode(prompts))
    found = model.encode_beginnings(prompts, padding)
    counts = [1 + model.window - len(rows) for rows in found]
    return [
        torch.cat([rows[:-1], rows[-1:] * count**0.5])
        for rows, count in zip(found, counts, strict=True)
    ]


def moment(model: Model, prompts: Sequence[str]) -> Tensor:
    """``sum e e^T`` over all rows of all prompts, ``[width, width]`` float64."""
    blocks = [prompts[at : at + MOMENT_BATCH] for at in range(0, len(prompts), MOMENT_BATCH)]
    return reduce(torch.add, (gram(model.encode(block)) for block in blocks))


def mean_moment(model: Model, prompts: Sequence[str]) -> Tensor:
    """The mean of a prompt's ``sum e e^T`` over all its rows, ``[width, width]`` float32."""
    return (moment(model, prompts) / len(prompts)).float()


def made_with() -> dict[str, str]:
    """The versions that decide the numbers."""
    return {name: version(name) for name in ("expunge", "torch", "transformers")}


PriorFile = Annotated[
    InstanceOf[Prior],
    or_file(Prior.load),
    PlainSerializer(lambda prior: prior.metadata.model_dump(mode="json"), return_type=dict),
]
"""A setting that is a ``Prior`` or the path of one; a record of it holds the metadata."""


def sound(total: Tensor, source: str) -> Tensor:
    """The sum, if it is finite."""
    if not bool(torch.isfinite(total).all()):
        raise ExpungeError(f"the embeddings of {source} aren't all finite")
    return total


def _write(path: PathLike, total: Tensor, metadata: Metadata, *, done: int | None = None) -> None:
    write(path, HEADER, {"metadata": metadata.model_dump(mode="json"), "done": done}, {GRAM: total})


def _read(path: PathLike) -> tuple[Tensor, Metadata, int | None]:
    """The sum, its metadata, and the number of prompts so far if it is unfinished."""
    record, tensors = read(path, HEADER, "prior")
    try:
        metadata = Metadata.model_validate(record.get("metadata"))
        done = TypeAdapter(int | None).validate_python(record.get("done"), strict=True)
    except ValidationError as error:
        raise ExpungeError(f"{path}: wrong record: {explain(error)}") from None
    total = tensors.get(GRAM)
    if total is None or total.dtype != torch.float64:
        raise ExpungeError(f"{path}: lacks its sum in double precision; the file is damaged")
    if total.ndim != 2 or total.shape[0] != total.shape[1]:
        raise ExpungeError(f"{path}: its sum isn't a square matrix")
    return sound(total, str(path)), metadata, done


def _restore(path: PathLike, wanted: Metadata) -> tuple[Tensor, int]:
    total, metadata, done = _read(path)
    if metadata != wanted or done is None:
        raise ExpungeError(
            f"{path} holds the state of a run with other prompts, another text encoder or another "
            "version; choose another file or delete this one"
        )
    return total, done
