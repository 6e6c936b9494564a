"""Words and places of the leaderboard under attack."""

from typing import NamedTuple

from expunge.evaluation.bench import Board, Standing
from expunge.statistics.rates import Estimate, Rate

NEAR = 0.04
"""Methods that are nearer than this in the plot, as shares of its sides, share a label."""
CLEAR = 0.05
"""What the plot leaves free beside the method that keeps least."""


class Spot(NamedTuple):
    """A place in the plot, for methods that are too near to each other to be told apart."""

    kept: float
    """Share of pictures of other things that are right."""
    gone: float
    """Share of pictures that no attack brings back."""
    methods: tuple[Standing, ...]


def brief(rate: Rate | None) -> str:
    """E.g. ``3 of 42 (2–19 %)``."""
    if rate is None:
        return "–"
    low, high = (100 * bound for bound in rate.interval)
    return f"{rate.successes} of {rate.n} ({low:.0f}–{high:.0f} %)"


def cell(one: Standing, attack: str) -> str:
    """What an attack brings back, and what its control does."""
    rate, control = one.attack(attack), one.control(attack)
    return brief(rate) if control is None else f"{brief(rate)}; control {control.successes}"


def points(estimate: Estimate | None) -> str:
    """A difference of shares in points, e.g. ``+12 (3 to 21)``."""
    if estimate is None:
        return "–"
    low, high = (100 * bound for bound in estimate.interval)
    return f"{100 * estimate.value:+.0f} ({low:.0f} to {high:.0f})"


def least(board: Board) -> float:
    """Where the plot's axis of what is kept begins."""
    kept = [one.kept.value for one in board.methods if one.kept]
    return max(0.0, min(kept, default=1.0) - CLEAR)


def spots(board: Board) -> list[Spot]:
    """Places of all methods, the most robust first."""
    low = least(board)
    found: list[Spot] = []
    for one in board.methods:
        if one.kept is None:
            continue
        kept, gone = one.kept.value, 1 - one.comes_back.value
        for number, spot in enumerate(found):
            aside = abs(spot.kept - kept) / (1 - low)
            if max(aside, abs(spot.gone - gone)) < NEAR:
                found[number] = spot._replace(methods=(*spot.methods, one))
                break
        else:
            found.append(Spot(kept, gone, (one,)))
    return sorted(found, key=lambda spot: -spot.gone)
