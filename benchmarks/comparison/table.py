"""A line of the table: what is measured of ours, and what the work needs at least."""

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from expunge import Edit
from expunge.memory import peak_memory
from timing import typical


class Row(NamedTuple):
    """One line of the table: seconds, bytes, and operations."""

    work: str
    ours: float
    theirs: float | None
    memory: int
    """What ours needed at most beyond what was there before."""
    file: int
    operations: float
    """What the work needs at least, with a symmetric product counted half."""
    touched: float
    """Bytes that have to be read or written."""
    part: str
    """What was timed of the other side."""

    def __str__(self) -> str:
        columns = (
            f"{self.work:<44}",
            f"{duration(self.ours):>8}",
            f"{duration(self.theirs) if self.theirs else '':>8}",
            f"{self.theirs / self.ours:,.0f} x" if self.theirs else "",
            f"{self.memory / 1e6:,.0f} MB",
            f"{self.file / 1e6:.2f} MB" if self.file else "",
            f"{self.operations / 1e9:,.3g} GFLOP",
            f"{self.touched / 1e6:,.3g} MB",
        )
        return "  ".join((*columns[:3], *(f"{text:>11}" for text in columns[3:]), self.part))


HEADER = f"{'':<44}      ours    theirs" + "".join(
    f"{text:>13}" for text in ("ratio", "peak memory", "file", "least work", "least bytes")
)


def duration(value: float) -> str:
    """Seconds in the unit in which they are read most easily."""
    units = (("ms", 1e-3, 1), ("s", 1, 100), ("min", 60, 6000), ("h", 3600, float("inf")))
    return next(f"{value / size:.3g} {unit}" for unit, size, limit in units if value < limit)


def measured(
    work: str,
    ours: Callable[[], object],
    theirs: float | None,
    runs: int,
    *,
    operations: float,
    touched: float,
    file: int = 0,
    part: str = "all",
    after: Callable[[], object] = lambda: None,
) -> Row:
    """The median of so many calls of ``ours``, and its memory; ``after`` follows each call."""
    time = typical(ours, runs, after)
    memory = peak(ours)
    after()
    return Row(work, time, theirs, memory, file, operations, touched, part if theirs else "")


def scaled(action: Callable[[int], object], sample: int, total: int, runs: int) -> float:
    """Seconds that ``action(total)`` would take, from medians of none and of a sample."""
    nothing = typical(lambda: action(0), runs)
    return nothing + (typical(lambda: action(sample), runs) - nothing) * total / sample


def peak(action: Callable[[], object]) -> int:
    """Bytes in memory at most during a call, less those before it; Linux only."""
    libc, mmap_threshold, trim_threshold = ctypes.CDLL("libc.so.6"), -3, -1
    libc.mallopt(mmap_threshold, 1 << 18)  # what is freed goes back at once and isn't counted
    libc.malloc_trim(0)
    with peak_memory(interval=0.0005) as used:
        action()
    libc.mallopt(mmap_threshold, 1 << 25)
    libc.mallopt(trim_threshold, 1 << 26)
    return used.added


def saved(edit: Edit, folder: Path) -> int:
    """Bytes of its file."""
    edit.save(folder / "edit.safetensors")
    return (folder / "edit.safetensors").stat().st_size
