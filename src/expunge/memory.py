"""Peak memory of a piece of work, of this process or on a GPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Thread

import psutil
import torch

INTERVAL = 0.005
"""Seconds between two readings."""


@dataclass
class Usage:
    """Bytes in use around a block of work; complete when the block has ended."""

    before: int
    """In use when the block began."""
    peak: int
    """Most in use while the block ran."""

    @property
    def added(self) -> int:
        """Peak minus what was in use before."""
        return self.peak - self.before


@contextmanager
def peak_memory(
    device: torch.device | None = None, *, interval: float = INTERVAL
) -> Iterator[Usage]:
    """``with peak_memory(device) as used: ...``; then ``used.peak`` is the most bytes in use.

    On a GPU, this is what torch has allocated there. Otherwise it is the resident memory of this
    process. A thread reads it every ``interval`` seconds, so short peaks may be missed.
    """
    if device is not None and device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        used = Usage(before, before)
        try:
            yield used
        finally:
            used.peak = torch.cuda.max_memory_allocated(device)
        return
    process, ended = psutil.Process(), Event()
    before = process.memory_info().rss
    used = Usage(before, before)

    def look() -> None:
        used.peak = max(used.peak, process.memory_info().rss)

    def watch() -> None:
        while not ended.wait(interval):
            look()

    watcher = Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield used
    finally:
        ended.set()
        watcher.join()
        look()
