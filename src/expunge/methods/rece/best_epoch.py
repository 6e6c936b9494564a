"""The number of RECE's epochs, chosen by what each of them leaves of the concept."""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

from expunge.edits.payloads import Change
from expunge.errors import ExpungeError


class Best(NamedTuple):
    """The epoch with the best score."""

    epoch: int
    """The value for ``epochs``; 0 is UCE alone."""
    payload: Change
    score: float


def best_epoch(
    payloads: Iterable[Change], score: Callable[[Change], float], base: float = math.inf
) -> Best:
    """The payload of ``solve_epochs`` with the lowest score; of equal ones, the first.

    Args:
        payloads: those after UCE and after each epoch.
        score: measures what is left of the concept, e.g. as a rate over pictures; lower is better.
        base: the score of the model without an edit.

    Raises:
        ExpungeError: no payload scores below the base, or a score is NaN.
    """
    best: Best | None = None
    lowest = base
    for epoch, payload in enumerate(payloads):
        value = score(payload)
        if math.isnan(value):
            raise ExpungeError(f"the score of epoch {epoch} is NaN, so no epoch can be chosen")
        if value < lowest:
            best, lowest = Best(epoch, payload, value), value
    if best is None:
        raise ExpungeError(f"no epoch scores below {base:g}, the model without an edit")
    return best
