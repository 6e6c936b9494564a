"""Curves over thresholds: they start at all, never rise, and refuse what would count too little."""

import math

import pytest

from expunge.errors import ExpungeError
from expunge.statistics.curves import rates_at, threshold_curve
from expunge.statistics.rates import Rate, paired_difference

SCORES = [0.0, 0.3, 0.45, 0.6, 0.9]


def test_a_score_at_the_threshold_fires() -> None:
    assert rates_at(SCORES, [0, 0.45, 0.6, 1]) == (Rate(5, 5), Rate(3, 5), Rate(2, 5), Rate(0, 5))


def test_the_base_is_beside_the_edited_model() -> None:
    edited = [0.0, 0.0, 0.0, 0.5, 0.2]
    (first, second) = threshold_curve(SCORES, edited, [0.25, 0.5], floor=0.25)
    assert (first.threshold, first.base, first.edited) == (0.25, Rate(4, 5), Rate(1, 5))
    assert (second.base, second.edited) == (Rate(2, 5), Rate(1, 5))
    assert second.difference == paired_difference(
        [False, False, False, True, True], [False, False, False, True, False]
    )


@pytest.mark.parametrize(
    ("scores", "thresholds", "reason"),
    [
        ([], [0.5], "no cases"),
        ([0.1], [], "without any threshold"),
        ([0.1, math.nan], [0.5], "score is not a finite"),
        ([0.1], [math.nan], "threshold is not a finite"),
        ([0.1], [0.5, 0.5], "ascend"),
    ],
)
def test_nothing_and_nan_are_refused(
    scores: list[float], thresholds: list[float], reason: str
) -> None:
    with pytest.raises(ExpungeError, match=reason):
        rates_at(scores, thresholds)


def test_a_threshold_below_the_detectors_floor_is_refused() -> None:
    with pytest.raises(ExpungeError, match=r"reports nothing below 0\.25"):
        threshold_curve(SCORES, SCORES, [0.2, 0.5], floor=0.25)
    with pytest.raises(ExpungeError, match="paired"):
        threshold_curve(SCORES, SCORES[1:], [0.5])
