"""Paired tests of two models against another implementation and published values."""

import math

import pytest
from pydantic import TypeAdapter
from scipy.stats import binomtest

from expunge.errors import ExpungeError
from expunge.statistics.paired import McNemar, mcnemar, mean_difference


@pytest.mark.parametrize(
    ("before", "after"), [(0, 1), (3, 3), (1, 7), (12, 2), (30, 0), (400, 900)]
)
def test_the_p_value_is_that_of_a_fair_coin(before: int, after: int) -> None:
    assert McNemar(5, before, after, 9).p == pytest.approx(binomtest(before, before + after).pvalue)


def test_a_published_value() -> None:
    """Bentur et al. 2009, in Fagerland, Lydersen and Laake 2013: p = 0.0703."""
    assert McNemar(1, 1, 7, 12).p == pytest.approx(0.0703, abs=5e-5)


def test_pairs_are_counted_by_kind() -> None:
    before = [True, True, True, False, False, False]
    after = [True, False, False, True, False, False]
    found = mcnemar(before, after)
    assert found == McNemar(both=1, only_before=2, only_after=1, neither=2)
    assert found.p == 1
    assert mcnemar([True], [True]).p == 1


def test_json_carries_the_p_value_and_reads_back() -> None:
    adapter, found = TypeAdapter(McNemar), McNemar(1, 1, 7, 12)
    text = adapter.dump_json(found)
    assert b'"p":0.07' in text
    assert adapter.validate_json(text) == found


def test_differences_are_taken_pair_by_pair() -> None:
    before = [10.0, 20.0, 30.0, 40.0]
    estimate = mean_difference(before, [value + 1 for value in before])
    assert estimate.value == estimate.interval[0] == estimate.interval[1] == 1
    assert estimate.n == 4


def test_what_cannot_be_paired_is_refused() -> None:
    with pytest.raises(ExpungeError, match="paired"):
        mcnemar([True], [])
    with pytest.raises(ExpungeError, match="no pairs"):
        mcnemar([], [])
    with pytest.raises(ExpungeError, match="no pairs"):
        McNemar(3, -1, 2, 2)
    with pytest.raises(ExpungeError, match="paired"):
        mean_difference([1.0, 2.0], [1.0])
    with pytest.raises(ExpungeError, match="finite"):
        mean_difference([1.0, 2.0], [1.0, math.nan])
