"""How a rate depends on a detector's threshold: one number at one threshold can be chosen."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from expunge.errors import ExpungeError
from expunge.statistics.rates import Estimate, Rate, paired_difference


@dataclass(frozen=True)
class ThresholdPoint:
    """Pictures of the base and of the edited model that fire at one threshold."""

    threshold: float
    base: Rate
    edited: Rate
    difference: Estimate
    """Edited minus base, paired."""


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


def threshold_curve(
    base: Sequence[float],
    edited: Sequence[float],
    thresholds: Sequence[float],
    *,
    floor: float = 0.0,
) -> tuple[ThresholdPoint, ...]:
    """Both models' rates at each threshold; score i is of the same prompt and seed in both.

    Args:
        base: scores as for ``rates_at``.
        edited: the same for the edited model.
        thresholds: ascending.
        floor: the detector reports nothing below; a threshold there would count too little.

    Raises:
        ExpungeError: as for ``rates_at``; the pictures can't be paired, or a threshold is below
            the floor.
    """
    _check_thresholds(thresholds)
    if thresholds[0] < floor:
        raise ExpungeError(
            f"threshold {thresholds[0]:g}: the detector reports nothing below {floor:g}; "
            "start the curve there"
        )
    return tuple(
        ThresholdPoint(at, Rate.of(before), Rate.of(after), paired_difference(before, after))
        for at, before, after in zip(
            thresholds, _fired(base, thresholds), _fired(edited, thresholds), strict=True
        )
    )


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
