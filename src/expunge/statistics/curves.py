"""How a rate depends on a detector's threshold: a single threshold can be cherry-picked."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from expunge.errors import ExpungeError
from expunge.statistics.rates import Rate


def rates_at(scores: Sequence[float], thresholds: Sequence[float]) -> tuple[Rate, ...]:
    """The share of pictures whose score is at least each threshold.

    Args:
        scores: one a picture, e.g. that of its surest detection, and 0 where nothing was found.
        thresholds: ascending.

    Raises:
        ExpungeError: there is no picture or no threshold, a number isn't finite, or the
            thresholds don't ascend.
    """
    _check_thresholds(thresholds)
    return tuple(Rate.of(fires) for fires in _fired(scores, thresholds))


def _fired(scores: Sequence[float], thresholds: Sequence[float]) -> list[list[bool]]:
    """Whether each picture fires, at each threshold."""
    if not np.isfinite(np.asarray(scores, dtype=np.float64)).all():
        raise ExpungeError("a score is not a finite number; judge its picture again")
    return [[score >= threshold for score in scores] for threshold in thresholds]


def _check_thresholds(thresholds: Sequence[float]) -> None:
    if not thresholds:
        raise ExpungeError("a curve without any threshold; give at least one")
    if not np.isfinite(np.asarray(thresholds, dtype=np.float64)).all():
        raise ExpungeError("a threshold is not a finite number")
    if any(one >= other for one, other in pairwise(thresholds)):
        raise ExpungeError("the thresholds of a curve must ascend")
