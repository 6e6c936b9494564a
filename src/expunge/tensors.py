"""Files of our own that hold tensors: safetensors with a record in the header, and its checksum."""

import hashlib
import json
import mmap
import os
import time
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from expunge.errors import ExpungeError
from expunge.files import PathLike, replacing

CHECKSUM = "checksum"
RECENT = 2_000_000_000
"""Nanoseconds in which a file may be written again without another time of change."""


class TensorFile(NamedTuple):
    """What a file holds."""

    record: dict[str, Any]
    tensors: dict[str, Tensor]


class Slot(NamedTuple):
    """Where a tensor lies in a file."""

    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]


def read_slot(file: BinaryIO, slot: Slot) -> Tensor:
    """A tensor from an open file, whatever other threads and forked processes read from it.

    Raises:
        ValueError: the file is too short.
    """
    return map_bytes(file, slot).clone().view(slot.dtype).view(slot.shape)


def map_slot(file: BinaryIO, slot: Slot) -> Tensor:
    """The same without a copy: it is read as it is used, and differs once the file does.

    Writing into it doesn't reach the file. Only what was used takes memory.
    """
    if slot.offset % slot.dtype.itemsize:  # no processor has to compute with such addresses
        return read_slot(file, slot)
    return map_bytes(file, slot).view(slot.dtype).view(slot.shape)


def map_bytes(file: BinaryIO, slot: Slot) -> Tensor:
    """The bytes of a tensor in a file, ``[bytes]``."""
    size = prod(slot.shape) * slot.dtype.itemsize
    if not size:
        return torch.empty(0, dtype=torch.uint8)
    begin = slot.offset - slot.offset % mmap.ALLOCATIONGRANULARITY
    ahead = slot.offset - begin
    found = mmap.mmap(file.fileno(), ahead + size, access=mmap.ACCESS_COPY, offset=begin)
    return torch.frombuffer(found, dtype=torch.uint8, offset=ahead, count=size)


class Unread(Mapping[str, Tensor]):
    """The tensors of a safetensors file; each is read when it is asked for, and not kept.

    The file stays open: renaming or removing it does no harm. A copy has read everything.
    """

    def __init__(self, path: PathLike) -> None:
        """Open a file.

        Raises:
            ExpungeError: it is no safetensors file, or it is cut short.
        """
        self.path = path
        try:
            with safe_open(path, framework="pt") as checked:
                self.header: dict[str, str] = checked.metadata() or {}
            self._file = open(path, "rb")  # noqa: SIM115
            self.slots = _slots(self._file)
        except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
            told = " ".join(str(error).split())[:200]
            raise ExpungeError(f"{path}: not a safetensors file, or cut short ({told})") from None
        self._state = self._now()

    def __getitem__(self, name: str) -> Tensor:
        """One tensor.

        Raises:
            ExpungeError: the file was written to since it was opened.
        """
        self.check()
        found = read_slot(self._file, self.slots[name])
        self.check()
        return found

    def mapped(self, name: str) -> Tensor:
        """The same without a copy; whoever uses it calls ``check`` afterwards.

        Raises:
            ExpungeError: the file was written to since it was opened.
        """
        self.check()
        return map_slot(self._file, self.slots[name])

    def __contains__(self, name: object) -> bool:
        return name in self.slots

    def __iter__(self) -> Iterator[str]:
        return iter(self.slots)

    def __len__(self) -> int:
        return len(self.slots)

    def __reduce__(self) -> tuple[type[dict[str, Tensor]], tuple[dict[str, Tensor]]]:
        return dict, (dict(self),)

    @property
    def stamp(self) -> str:
        """What tells this file as it is from all others without a look into it.

        Empty if it was written just now: what is written next might have the same times.

        Raises:
            ExpungeError: the file was written to since it was opened.
        """
        self.check()
        found = os.fstat(self._file.fileno())
        if time.time_ns() - found.st_ctime_ns < RECENT:
            return ""
        places = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        return "-".join(map(str, places))

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self._state[0]

    def check(self) -> None:
        """Check that nobody has written into the file since it was opened.

        Raises:
            ExpungeError: somebody has.
        """
        if self._now() != self._state:
            raise ExpungeError(f"{self.path}: was changed since it was loaded; load it again")

    def _now(self) -> tuple[int, int]:
        found = os.fstat(self._file.fileno())
        return found.st_size, found.st_mtime_ns


class Selection(Mapping[str, Tensor]):
    """Some of many tensors, under names of their own; nothing is read before it is asked for."""

    def __init__(self, tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
        """``names`` are those in ``tensors`` by the new ones.

        Raises:
            KeyError: a tensor is missing.
        """
        for name in names.values():
            if name not in tensors:
                raise KeyError(name)
        self._tensors = tensors
        self._names = names

    @property
    def unread(self) -> bool:
        """Whether they lie in a file."""
        whole = self._tensors
        return isinstance(whole, Unread) or (isinstance(whole, Selection) and whole.unread)

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[self._names[name]]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""What tensors of our files may hold, by the name that safetensors has for it."""


def _slots(file: BinaryIO) -> dict[str, Slot]:
    """Where the tensors of a whole safetensors file lie, in the order of their names."""
    length = int.from_bytes(file.read(8), "little")
    described = json.loads(file.read(length))
    described.pop("__metadata__", None)
    return {
        name: Slot(8 + length + one["data_offsets"][0], _DTYPES[one["dtype"]], tuple(one["shape"]))
        for name, one in sorted(described.items())
    }


def write(
    path: PathLike,
    entry: str,
    record: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    checksum: bool = True,
) -> None:
    """Write tensors and a record, whole or not at all.

    Args:
        path: the file.
        entry: of the header, under which the record stands.
        record: what JSON can hold.
        tensors: on any device.
        checksum: whether to add one; not needed where the record has its own.
    """
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    plain = json.loads(json.dumps(record))
    whole = {**plain, CHECKSUM: _checksum(plain, ready)} if checksum else plain
    with replacing(path) as temporary:
        save_file(ready, temporary, metadata={entry: json.dumps(whole)})


def holds(path: PathLike, entry: str) -> bool:
    """Whether a file has such a record in its header; what follows may still be damaged."""
    if not Path(path).is_file():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return entry in (file.metadata() or {})
    except SafetensorError:
        return False


def read(path: PathLike, entry: str, what: str) -> TensorFile:
    """The record and the tensors of a file that ``write`` wrote.

    Files of version 0.1 have no checksum; the caller must check what is in them.

    Args:
        path: the file.
        entry: of the header, under which the record stands.
        what: the name of such a file, e.g. ``edit``.

    Raises:
        ExpungeError: there is no such file, it is damaged, or it is no ``what``.
    """
    _check_there(path, what)
    header, tensors = raw(path)
    record = _record(path, header, entry, what)
    expected = record.pop(CHECKSUM, None)
    if expected is not None and expected != _checksum(record, tensors):
        raise ExpungeError(
            f"{path}: not a whole expunge {what}; its content was changed or damaged"
        )
    return TensorFile(record, tensors)


def unread(path: PathLike, entry: str, what: str) -> tuple[dict[str, Any], Unread]:
    """The same with tensors that stay in the file; for files without a checksum.

    Raises:
        ExpungeError: there is no such file, it is damaged, or it is no ``what``.
    """
    _check_there(path, what)
    tensors = Unread(path)
    return _record(path, tensors.header, entry, what), tensors


def _check_there(path: PathLike, what: str) -> None:
    if not Path(path).is_file():
        raise ExpungeError(f"{path}: no such {what}")


def _record(path: PathLike, header: Mapping[str, str], entry: str, what: str) -> dict[str, Any]:
    if entry not in header:
        raise ExpungeError(f"{path}: these tensors are no expunge {what} (no record inside)")
    try:
        record = json.loads(header[entry])
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise ExpungeError(f"{path}: not a whole expunge {what}; its record can't be read")
    return record


def raw(path: PathLike) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The header and the tensors of any safetensors file.

    Raises:
        ExpungeError: it is no safetensors file, or it is cut short.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return file.metadata() or {}, tensors
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        told = " ".join(str(error).split())[:200]
        raise ExpungeError(f"{path}: not a safetensors file, or cut short ({told})") from None


def _checksum(record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Hex SHA-256 of everything in the file."""
    canonical = json.dumps(record, sort_keys=True)  # in ASCII, whatever the file holds
    total = hashlib.sha256(canonical.encode())
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        total.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()
