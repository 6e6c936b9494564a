"""Seconds that work takes, for all benchmarks."""

import statistics
import time
from collections.abc import Callable


def seconds(action: Callable[[], object]) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def times(
    action: Callable[[], object], runs: int, after: Callable[[], object] = lambda: None
) -> list[float]:
    """Seconds of each of so many calls; ``after`` follows each and isn't counted."""
    found = []
    for _ in range(runs):
        found.append(seconds(action))
        after()
    return found


def typical(
    action: Callable[[], object], runs: int, after: Callable[[], object] = lambda: None
) -> float:
    """The median of ``times``."""
    return statistics.median(times(action, runs, after))
