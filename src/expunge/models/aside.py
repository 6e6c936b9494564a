"""Where base weights lie while others are in their place: few in memory, many in a file."""

import os
import tempfile
from collections.abc import Collection, Iterator, MutableMapping
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor, nn

from expunge.files import cache_folder
from expunge.tensors import Slot, read_slot

IN_MEMORY = 1 / 6
"""The largest share of a network that is put aside in memory: more than the keys and values."""
FILE_SIZE = 2**28
"""Bytes after which another file is begun, so that disk space is free again bit by bit."""


class _InFile(NamedTuple):
    file: BinaryIO
    slot: Slot


class Aside(MutableMapping[str, Tensor]):
    """Copies of a network's parameters by name.

    Most of a network would take the memory of a second one, and goes to files instead. They lie in
    the cache folder without a name, so that nothing is left when the process ends, however it
    ends. Where none can be written, everything stays in memory.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._kept: dict[str, Tensor | _InFile] = {}
        self._to_file = False
        self._file: BinaryIO | None = None
        """Where the next one is written. What is written is never changed."""
        self._writer = 0
        """The process that writes; a forked one begins a file of its own."""

    def expect(self, names: Collection[str]) -> None:
        """Say which parameters come next, all told, to decide where they lie."""
        sizes = {name: _size(one) for name, one in self.network.named_parameters()}
        self._to_file = sum(map(sizes.__getitem__, names)) > IN_MEMORY * sum(sizes.values())

    def __setitem__(self, name: str, value: Tensor) -> None:
        written = self._written(value) if self._to_file else None
        self._kept[name] = written or value.detach().clone()

    def __getitem__(self, name: str) -> Tensor:
        kept = self._kept[name]
        return read_slot(*kept) if isinstance(kept, _InFile) else kept

    def __delitem__(self, name: str) -> None:
        del self._kept[name]
        if not self._kept:
            self._file = None

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, name: object) -> bool:
        return name in self._kept

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy has copies."""
        return Aside, (self.network,), None, None, iter(self.items())

    def _written(self, value: Tensor) -> _InFile | None:
        """The copy in a file; ``None`` if it can't be written there."""
        try:
            file = self._open()
            offset = file.seek(0, os.SEEK_END)
            file.write(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
            file.flush()
        except OSError:
            self._file = None
            return None
        return _InFile(file, Slot(offset, value.dtype, tuple(value.shape)))

    def _open(self) -> BinaryIO:
        if self._writer != os.getpid() or (self._file and self._file.tell() > FILE_SIZE):
            self._file = None
        if self._file is None:
            folder = cache_folder()
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
            self._writer = os.getpid()
        return self._file


def _size(value: Tensor) -> int:
    return value.numel() * value.element_size()
