"""Erased and kept in one number: MACE's H_o, H_c and H_a, with intervals.

Lu et al., "MACE: Mass Concept Erasure in Diffusion Models", CVPR 2024, equations 8 and 9.
All shares are 0 to 1. One number hides which side failed, so show it with its parts.
"""

from collections.abc import Callable, Sequence
from math import isfinite

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from typing_extensions import TypeIs

from expunge.errors import ExpungeError
from expunge.statistics.rates import RESAMPLES, Estimate, Rate, finite, quantiles, resampled

Values = Sequence[bool] | Sequence[float]
"""Outcomes of single pictures (``bool``), or what was measured on each (``float``)."""
Groups = Sequence[Values]
"""One list for each class, name or synonym; each counts the same, however many pictures it has."""


def h_o(acc_e: float, acc_s: float, acc_g: float) -> float:
    """MACE's ``H_o`` (eq. 8): the harmonic mean of ``1 - Acc_e``, ``Acc_s`` and ``1 - Acc_g``.

    Args:
        acc_e: accuracy on the erased class; low is good.
        acc_s: mean accuracy on the other classes.
        acc_g: mean accuracy on the erased class's synonyms; low is good.

    Raises:
        ExpungeError: a share is NaN or outside 0 to 1.
    """
    return harmonic(1 - acc_e, acc_s, 1 - acc_g)


def h_c(acc_e: float, acc_s: float) -> float:
    """MACE's ``H_c`` (eq. 9): the harmonic mean of ``1 - Acc_e`` and ``Acc_s``.

    Raises:
        ExpungeError: a share is NaN or outside 0 to 1.
    """
    return harmonic(1 - acc_e, acc_s)


def h_a(clip_s: float, clip_e: float) -> float:
    """MACE's ``H_a``: the mean CLIP score of kept artists minus that of erased ones.

    A plain difference, in spite of its name.

    Raises:
        ExpungeError: a score isn't finite.
    """
    if not isfinite(clip_s - clip_e):
        raise ExpungeError("a CLIP score is not a finite number; H_a is unknown")
    return clip_s - clip_e


def harmonic(*shares: float) -> float:
    """The harmonic mean of shares 0 to 1; its limit 0 where one of them is 0.

    Raises:
        ExpungeError: there is none, or one is NaN or outside 0 to 1.
    """
    if not shares:
        raise ExpungeError("a harmonic mean of nothing is unknown; give at least one share")
    for share in shares:
        if not 0 <= share <= 1:
            raise ExpungeError(f"{share:g} is no share; give 0 to 1, not percent")
    return len(shares) / sum(1 / share for share in shares) if all(shares) else 0.0


def combined(formula: Callable[..., float], *parts: Groups, seed: int = 0) -> Estimate:
    """``formula`` of the mean of each part, with an interval from seeded draws of all of them.

    ``combined(h_o, [erased], others, synonyms)``, say. A part is the mean over its groups of each
    group's mean. Every draw redraws every group: of outcomes, which may all be alike, the share
    comes from its posterior under Jeffreys' prior, ``Beta(successes + 1/2, failures + 1/2)``; of
    measured values the mean of a bootstrap resample. The interval holds the middle 95 % of what
    the formula gives, and is widened to the value itself where that lies at an end.

    Raises:
        ExpungeError: a part or a group is empty, a group of measured values has fewer than two,
            or a value isn't finite.
    """
    if not parts or not all(parts):
        raise ExpungeError("a part has no group; every part needs at least one picture")
    generator = np.random.default_rng(seed)
    means = [float(np.mean([_mean(values) for values in groups])) for groups in parts]
    draws = [np.mean([_draws(values, generator) for values in groups], axis=0) for groups in parts]
    value = formula(*means)
    low, high = quantiles([formula(*drawn) for drawn in zip(*draws, strict=True)])
    count = sum(len(values) for groups in parts for values in groups)
    return Estimate(value, (min(low, value), max(high, value)), count)


def _mean(values: Values) -> float:
    return Rate.of(values).value if _are_outcomes(values) else float(finite(values).mean())


def _draws(values: Values, generator: Generator) -> NDArray[np.float64]:
    """What the mean of the values might have been as well, ``[RESAMPLES]``."""
    if not _are_outcomes(values):
        return resampled(finite(values), generator)
    successes = sum(values)
    return generator.beta(successes + 0.5, len(values) - successes + 0.5, RESAMPLES)


def _are_outcomes(values: Values) -> TypeIs[Sequence[bool]]:
    return all(isinstance(value, bool | np.bool_) for value in values)
