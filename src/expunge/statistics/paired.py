"""Whether two models differ on the same prompts and seeds: McNemar's exact test.

McNemar, "Note on the sampling error of the difference between correlated proportions or
percentages", Psychometrika 1947. For the size of a
difference and its interval, use ``rates.paired_difference`` for outcomes and ``mean_difference``
for measured values, whose bootstrap resamples pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pydantic import ConfigDict, computed_field

from expunge.errors import ExpungeError
from expunge.statistics.rates import Estimate, mean


@dataclass(frozen=True)
class McNemar:
    """Counts of paired outcomes, and the test that both models succeed equally often.

    Raises:
        ExpungeError: no pair at all, or a negative count.
    """

    # The value is written for readers and computed again when read back.
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="ignore")

    both: int
    only_before: int
    only_after: int
    neither: int

    def __post_init__(self) -> None:
        counts = (self.both, self.only_before, self.only_after, self.neither)
        if min(counts) < 0 or not any(counts):
            raise ExpungeError(f"no pairs to test: the counts are {counts}")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def p(self) -> float:
        """Exact two-sided p-value: the discordant pairs as tosses of a fair coin.

        1 if there are none.
        """
        tosses, rarer = self.only_before + self.only_after, min(self.only_before, self.only_after)
        tail = ways = 1  # in whole numbers: C(tosses, 0) + ... + C(tosses, rarer)
        for heads in range(rarer):
            ways = ways * (tosses - heads) // (heads + 1)
            tail += ways
        return min(1.0, 2 * tail / (1 << tosses))


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> McNemar:
    """Count paired outcomes, where case i is the same prompt and seed in both.

    Raises:
        ExpungeError: no case, or a different number of cases before and after.
    """
    _check_paired(before, after)
    pairs = [(bool(one), bool(other)) for one, other in zip(before, after, strict=True)]
    count = pairs.count
    return McNemar(
        count((True, True)), count((True, False)), count((False, True)), count((False, False))
    )


def mean_difference(before: Sequence[float], after: Sequence[float], seed: int = 0) -> Estimate:
    """Mean of ``after - before``, pair by pair, with the interval of ``rates.mean``.

    Raises:
        ExpungeError: fewer than two pairs, a value that isn't finite, or different numbers of them.
    """
    _check_paired(before, after)
    return mean([other - one for one, other in zip(before, after, strict=True)], seed)


def _check_paired(before: Sequence[object], after: Sequence[object]) -> None:
    if len(before) != len(after):
        raise ExpungeError(
            f"{len(before)} cases before and {len(after)} after can't be paired; "
            "both need the same prompts and seeds"
        )
