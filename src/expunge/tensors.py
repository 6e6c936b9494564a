"""Files of our own that hold tensors: safetensors with a record in the header, and its checksum."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from expunge.errors import ExpungeError
from expunge.files import PathLike, replacing

CHECKSUM = "checksum"


class TensorFile(NamedTuple):
    """What a file holds."""

    record: dict[str, Any]
    tensors: dict[str, Tensor]


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


def read(path: PathLike, entry: str, what: str) -> TensorFile:
    """The record and the tensors of a file that ``write`` wrote.

    Edits, and files of version 0.1, have no checksum; the caller must check what is in them.

    Args:
        path: the file.
        entry: of the header, under which the record stands.
        what: the name of such a file, e.g. ``edit``.

    Raises:
        ExpungeError: there is no such file, it is damaged, or it is no ``what``.
    """
    if not Path(path).is_file():
        raise ExpungeError(f"{path}: no such {what}")
    header, tensors = raw(path)
    if entry not in header:
        raise ExpungeError(f"{path}: these tensors are no expunge {what} (no record inside)")
    try:
        record = json.loads(header[entry])
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise ExpungeError(f"{path}: not a whole expunge {what}; its record can't be read")
    expected = record.pop(CHECKSUM, None)
    if expected is not None and expected != _checksum(record, tensors):
        raise ExpungeError(
            f"{path}: not a whole expunge {what}; its content was changed or damaged"
        )
    return TensorFile(record, tensors)


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
