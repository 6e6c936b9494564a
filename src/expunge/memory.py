"""The most memory that a piece of work needs: that of this process, or of a GPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Thread

import psutil
import torch

INTERVAL = 0.005
"""Seconds between two looks at this process."""


@dataclass
class Usage:
    """Bytes in use around a block of work; complete when the block has ended."""

    before: int
    """When the block began."""
    peak: int
    """At most, from the beginning of the block to its end."""

    @property
    def added(self) -> int:
        """At most, beyond those in use before."""
        return self.peak - self.before


@contextmanager
def peak_memory(
    device: torch.device | None = None, *, interval: float = INTERVAL
) -> Iterator[Usage]:
    """``with peak_memory(device) as used: ...``; then ``used.peak`` is the most bytes in use.

    On a GPU that is what torch has allocated there. Elsewhere, and without a device, it is the
    resident memory of this process; a thread looks at it every ``interval`` seconds, so what is
    freed sooner may be missed.
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
