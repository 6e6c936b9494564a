"""Rates, means and paired differences, each with its number of cases and a 95 % interval.

Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.
Newcombe, "Improved confidence intervals for the difference between binomial proportions based on
paired data", Statistics in Medicine 1998, method 10.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import copysign, hypot, sqrt
from statistics import NormalDist
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, computed_field

from expunge.errors import ExpungeError

RESAMPLES = 2000
_BLOCK = 100  # resamples at once: quick for few values, little memory for many
_CONFIDENCE = 0.95
_Z = NormalDist().inv_cdf(0.5 + _CONFIDENCE / 2)

Interval = tuple[float, float]


@dataclass(frozen=True)
class Rate:
    """``successes`` of ``n`` independent cases, with Wilson's interval.

    Raises:
        ExpungeError: no case at all, or more successes than cases.
    """

    # The value and the interval are written for readers and computed again when read back.
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="ignore")

    successes: int
    n: int

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ExpungeError("a rate of no cases is unknown, not 0; judge at least one image")
        if not 0 <= self.successes <= self.n:
            raise ExpungeError(f"there can't be {self.successes} successes in {self.n} cases")

    @classmethod
    def of(cls, outcomes: Sequence[bool]) -> "Rate":
        return cls(sum(outcomes), len(outcomes))

    @computed_field  # type: ignore[prop-decorator]
    @property
    def value(self) -> float:
        """The share of successes, 0 to 1."""
        return self.successes / self.n

    @computed_field  # type: ignore[prop-decorator]
    @property
    def interval(self) -> Interval:
        """Wilson's 95 % interval of the share."""
        shrink = 1 + _Z**2 / self.n
        centre = (self.value + _Z**2 / (2 * self.n)) / shrink
        half = _Z * sqrt(self.value * (1 - self.value) / self.n + (_Z / (2 * self.n)) ** 2) / shrink
        # Rounding would leave 1e-17 where the bound is exactly 0 or 1.
        low = 0.0 if self.successes == 0 else centre - half
        high = 1.0 if self.successes == self.n else centre + half
        return low, high

    def __str__(self) -> str:
        low, high = self.interval
        percent = f"{100 * self.value:.1f} %, 95 % CI {100 * low:.1f}–{100 * high:.1f} %"
        return f"{self.successes} of {self.n} ({percent})"


@dataclass(frozen=True)
class Estimate:
    """A quantity measured over ``n`` cases, with its 95 % interval."""

    value: float
    interval: Interval
    n: int

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.3g} (95 % CI {low:.3g} to {high:.3g}, n = {self.n})"


def mean(values: Sequence[float], seed: int = 0) -> Estimate:
    """The mean of ``values``; the interval is the seeded percentile bootstrap's.

    Raises:
        ExpungeError: fewer than two values (nothing says how they vary), or a NaN or infinity.
    """
    array = finite(values)
    means = resampled(array, np.random.default_rng(seed))
    return Estimate(float(array.mean()), quantiles(means), len(array))


def finite(values: Sequence[float]) -> NDArray[np.float64]:
    """The values as an array, after checking that their mean has an interval.

    Raises:
        ExpungeError: fewer than two values, or a NaN or infinity.
    """
    array = np.asarray(values, dtype=np.float64)
    if len(array) < 2:
        raise ExpungeError(
            f"a mean needs at least two values to have an interval, got {len(array)}"
        )
    if not np.isfinite(array).all():
        raise ExpungeError("a measured value is not a finite number; the mean is unknown")
    return array


def resampled(values: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
    """Means of ``RESAMPLES`` bootstrap resamples, ``[RESAMPLES]``."""
    blocks = (generator.choice(values, (_BLOCK, len(values))) for _ in range(RESAMPLES // _BLOCK))
    return np.concatenate([block.mean(axis=1) for block in blocks])


def quantiles(draws: Sequence[float] | NDArray[np.float64]) -> Interval:
    """The middle 95 % of what a resampled quantity came to."""
    low, high = np.quantile(np.asarray(draws), [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    return float(low), float(high)


def paired_difference(before: Sequence[bool], after: Sequence[bool]) -> Estimate:
    """Share of ``after`` minus share of ``before``, where case i is the same case in both.

    Raises:
        ExpungeError: no case, or a different number of cases before and after.
    """
    if len(before) != len(after):
        raise ExpungeError(
            f"{len(before)} cases before and {len(after)} after can't be paired; "
            "both need the same prompts and seeds"
        )
    first, second = Rate.of(before), Rate.of(after)
    correlation = _correlation(before, after)
    (low1, high1), (low2, high2) = first.interval, second.interval
    difference = second.value - first.value
    below = _side(second.value - low2, high1 - first.value, correlation)
    above = _side(high2 - second.value, first.value - low1, correlation)
    return Estimate(difference, (difference - below, difference + above), first.n)


def _side(half: float, other: float, correlation: float) -> float:
    """Length of one side of the interval of a difference of two correlated shares."""
    return sqrt(max(0.0, hypot(half, other) ** 2 - 2 * correlation * half * other))


def _correlation(before: Sequence[bool], after: Sequence[bool]) -> float:
    """Newcombe's phi, corrected for continuity; 0 where one of the shares is 0 or 1."""
    n, yes1, yes2 = len(before), sum(before), sum(after)
    both = sum(one and other for one, other in zip(before, after, strict=True))
    margins = yes1 * (n - yes1) * yes2 * (n - yes2)
    if margins == 0:
        return 0.0
    cross = n * both - yes1 * yes2  # = (both)(neither) - (only before)(only after)
    corrected = max(cross - n / 2, 0.0) if cross > 0 else cross
    return copysign(abs(corrected) / sqrt(margins), corrected)
