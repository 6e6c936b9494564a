"""Rates against published values, and what must be refused."""

import math

import numpy as np
import pytest
from pydantic import TypeAdapter

from expunge.errors import ExpungeError
from expunge.statistics.rates import Estimate, Rate, mean, paired_difference


def outcomes(both: int, only_before: int, only_after: int, neither: int):
    before = [True] * both + [True] * only_before + [False] * only_after + [False] * neither
    after = [True] * both + [False] * only_before + [True] * only_after + [False] * neither
    return before, after


# Newcombe, "Two-sided confidence intervals for the single proportion", 1998, method 3.
@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_has_the_published_values(successes, n, low, high):
    assert Rate(successes, n).interval == pytest.approx((low, high), abs=6e-5)


def test_wilson_mirrors_and_touches_the_ends():
    assert Rate(0, 7).interval[0] == 0
    assert Rate(7, 7).interval == pytest.approx([1 - bound for bound in Rate(0, 7).interval[::-1]])


def test_a_rate_reads_as_the_report_promises():
    assert str(Rate(3, 200)) == "3 of 200 (1.5 %, 95 % CI 0.5–4.3 %)"


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 3), (4, 3)])
def test_an_impossible_rate_is_refused(successes, n):
    with pytest.raises(ExpungeError):
        Rate(successes, n)


# Newcombe, "Improved confidence intervals ... based on paired data", 1998, method 10 (he takes
# before minus after); the last row is Bentur et al. 2009 in Fagerland, Lydersen and Laake.
@pytest.mark.parametrize(
    ("table", "low", "high"),
    [
        ((36, 12, 2, 0), 0.0569, 0.3404),
        ((18, 12, 2, 18), 0.0562, 0.3290),
        ((53, 0, 0, 1), -0.0729, 0.0729),
        ((0, 30, 0, 0), 0.8395, 1.0),
        ((1, 1, 7, 12), -0.507, -0.026),
    ],
)
def test_paired_difference_has_the_published_values(table, low, high):
    before, after = outcomes(*table)
    estimate = paired_difference(before, after)
    assert estimate.interval == pytest.approx((-high, -low), abs=5e-4)
    assert estimate.value == pytest.approx((sum(after) - sum(before)) / len(before))


def test_unpaired_cases_are_refused():
    with pytest.raises(ExpungeError, match="paired"):
        paired_difference([True], [True, False])


def test_the_mean_is_seeded_and_covers_the_truth():
    covered = 0
    for seed in range(40):
        draws = np.random.default_rng(seed).normal(3, 2, 60)
        low, high = mean(draws.tolist()).interval
        covered += low <= 3 <= high
    assert 34 <= covered <= 40
    assert mean([1.0, 2.0, 4.0]) == mean([1.0, 2.0, 4.0])


@pytest.mark.parametrize("values", [[], [1.0], [1.0, math.nan], [1.0, math.inf]])
def test_a_mean_of_too_little_or_of_nothing_finite_is_refused(values):
    with pytest.raises(ExpungeError):
        mean(values)


@pytest.mark.parametrize("value", [Rate(3, 200), Estimate(0.1, (0.0, 0.3), 9)])
def test_json_carries_the_interval_and_reads_back(value):
    adapter = TypeAdapter(type(value))
    text = adapter.dump_json(value)
    assert b"interval" in text
    assert adapter.validate_json(text) == value
