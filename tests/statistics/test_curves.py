"""Rates at thresholds: a score at the threshold fires, and what says nothing is refused."""

import math

import pytest

from expunge.errors import ExpungeError
from expunge.statistics.curves import rates_at
from expunge.statistics.rates import Rate

SCORES = [0.0, 0.3, 0.45, 0.6, 0.9]


def test_a_score_at_the_threshold_fires() -> None:
    assert rates_at(SCORES, [0, 0.45, 0.6, 1]) == (Rate(5, 5), Rate(3, 5), Rate(2, 5), Rate(0, 5))


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
