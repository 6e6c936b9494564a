"""Erased and kept in one number: published values, limits, intervals, refusals."""

import math

import numpy as np
import pytest

from expunge.errors import ExpungeError
from expunge.statistics.combined import combined, h_a, h_c, h_o, harmonic


def outcomes(successes: int, n: int) -> list[bool]:
    return [True] * successes + [False] * (n - successes)


def test_the_published_values() -> None:
    assert h_o(0.0906, 0.9539, 0.1003) == pytest.approx(0.9204, abs=5e-5)  # MACE, airplane
    assert h_c(0.0344, 0.9442) == pytest.approx(0.9548, abs=5e-5)  # OCE, 100 celebrities
    assert h_a(28.58, 22.59) == pytest.approx(5.99)


def test_one_side_that_failed_makes_it_0() -> None:
    assert h_o(1, 0.9, 0.1) == h_o(0.1, 0, 0.1) == h_c(0, 0) == h_c(1, 1) == 0
    assert h_o(0, 1, 0) == h_c(0, 1) == 1


@pytest.mark.parametrize("share", [math.nan, -0.01, 1.01, 9.06, math.inf])
def test_what_is_no_share_is_refused(share: float) -> None:
    for ask in (lambda: h_c(share, 0.5), lambda: h_c(0.5, share), lambda: h_o(0.1, 0.9, share)):
        with pytest.raises(ExpungeError, match="no share"):
            ask()


def test_nothing_is_refused() -> None:
    with pytest.raises(ExpungeError):
        harmonic()
    with pytest.raises(ExpungeError):
        h_a(math.nan, 20)
    with pytest.raises(ExpungeError, match="no cases"):
        combined(h_c, [[]], [[True]])
    for parts in ((), ([], [[True]])):
        with pytest.raises(ExpungeError, match="no group"):
            combined(h_c, *parts)
    for values in ([0.5], [0.5, math.nan]):
        with pytest.raises(ExpungeError):
            combined(h_c, [values], [[True]])


def test_each_group_counts_the_same() -> None:
    groups = [outcomes(1, 2), outcomes(90, 100)]
    assert combined(lambda share: share, groups).value == pytest.approx((0.5 + 0.9) / 2)
    assert combined(h_c, [outcomes(1, 10)], groups).value == pytest.approx(h_c(0.1, 0.7))
    assert combined(h_c, [outcomes(1, 10)], groups).n == 112


def test_the_interval_is_seeded_and_covers_the_truth() -> None:
    covered, truth = 0, h_o(0.1, 0.9, 0.2)
    for seed in range(40):
        draws = np.random.default_rng(seed)
        erased, kept, synonyms = ((draws.random(100) < share).tolist() for share in (0.1, 0.9, 0.2))
        estimate = combined(h_o, [erased], [kept], [synonyms], seed=seed)
        covered += estimate.interval[0] <= truth <= estimate.interval[1]
        assert estimate == combined(h_o, [erased], [kept], [synonyms], seed=seed)
    assert 34 <= covered <= 40


def test_outcomes_that_are_all_alike_are_not_certain() -> None:
    perfect = combined(h_c, [outcomes(0, 20)], [outcomes(20, 20)])
    assert perfect.value == perfect.interval[1] == 1
    assert 0.8 < perfect.interval[0] < 0.97
    failed = combined(h_c, [outcomes(20, 20)], [outcomes(20, 20)])
    assert failed.value == failed.interval[0] == 0
    assert failed.interval[1] > 0.02


def test_probabilities_may_take_the_place_of_outcomes() -> None:
    estimate = combined(h_c, [[0.1, 0.2, 0.3]], [[0.8, 1.0]])
    assert estimate.value == pytest.approx(h_c(0.2, 0.9))
    assert estimate.interval[0] < estimate.value < estimate.interval[1]


def test_scores_of_different_pictures_are_subtracted() -> None:
    estimate = combined(h_a, [[28.0, 29.0, 30.0]], [[20.0, 21.0]])
    assert estimate.value == pytest.approx(8.5)
    assert 7 <= estimate.interval[0] < 8.5 < estimate.interval[1] <= 10
