"""Methods ranked by what survives attacks, what they keep, how far pictures move, and the time."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from expunge.evaluation.bench.attacking import BASE, RETAIN_ONLY, AttackRow
from expunge.evaluation.bench.plan import Cell
from expunge.evaluation.bench.table import RETAINED, Line, Row, pooled
from expunge.evaluation.red_team import Counted
from expunge.statistics.rates import Estimate, Rate, paired_difference


class Standing(NamedTuple):
    """One method, over the tasks and seeds that were attacked."""

    method: str
    attacked: tuple[AttackRow, ...]
    zero: tuple[AttackRow, ...]
    """The model that never saw the concepts, in the same tasks and seeds; empty if there's none."""
    line: Line | None
    """What the method keeps and costs there; ``None`` for controls."""

    @property
    def by_name(self) -> Rate:
        return _together(one.found.by_name for one in self.attacked)

    @property
    def comes_back(self) -> Rate:
        """Pictures that the name or any attack brings back."""
        return _together(one.found.worst for one in self.attacked)

    @property
    def above(self) -> Estimate | None:
        """``comes_back`` minus the same of the model that never saw the concepts, paired."""
        if not self.zero:
            return None
        return paired_difference(_outcomes(self.zero), _outcomes(self.attacked))

    def attack(self, name: str) -> Rate | None:
        """What one attack brings back; ``None`` if it can't be tried on any of the edits."""
        return pooled(c.rate for c in self._of(name, "success"))

    def control(self, name: str) -> Rate | None:
        """What is drawn from where the attack's search began."""
        return pooled(c.rate for c in self._of(name, "control"))

    def _of(self, name: str, what: str) -> list[Counted]:
        found = [one for row in self.attacked for one in row.found.attacks if one.attack == name]
        return [counted for one in found if (counted := getattr(one, what)) is not None]

    @property
    def kept(self) -> Rate | None:
        """Pictures of other things that are right."""
        return self.line.edited(*RETAINED) if self.line else None

    @property
    def order(self) -> tuple[float, ...]:
        """The smaller, the better: what comes back, what is lost, drift, core seconds."""
        assert self.line is not None
        above, kept = self.above, self.kept
        return (
            above.value if above else self.comes_back.value,
            -kept.value if kept else 0.0,
            self.line.drift,
            self.line.median("core_seconds"),
        )


class Board(NamedTuple):
    """The leaderboard at one budget."""

    budget: str
    calls: int
    """Of the denoiser, for each picture and attack."""
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    attacks: tuple[str, ...]
    controls: tuple[Standing, ...]
    """The base, and a model that never saw the concepts if there is one."""
    methods: tuple[Standing, ...]
    """The best first."""

    @property
    def weak(self) -> tuple[str, ...]:
        """Attacks that bring back less than 90 % of what the base draws; they rank nothing."""
        base = self.controls[0]
        rates = {name: base.attack(name) for name in self.attacks}
        return tuple(name for name, rate in rates.items() if rate and rate.value < STRONG)


STRONG = 0.9


def board(rows: Sequence[Row], attacked: Sequence[AttackRow]) -> Board:
    """Rank the methods of some attacked rows, all at the same budget.

    A method takes part if it was attacked wherever the others were, so that all are asked the same.
    """
    zero = tuple(one for one in attacked if one.method == RETAIN_ONLY)
    names = dict.fromkeys(one.method for one in attacked)
    kept = {row.cell: row for row in rows}
    standings = [_standing(name, attacked, zero, kept) for name in names]
    places = max(len(one.attacked) for one in standings)
    methods = [s for s in standings if s.line and len(s.attacked) == places]
    first = attacked[0]
    return Board(
        budget=first.budget,
        calls=first.found.budget,
        tasks=tuple(dict.fromkeys(one.task for one in attacked)),
        seeds=tuple(sorted({one.seed for one in attacked})),
        attacks=tuple(one.attack for one in first.found.attacks),
        controls=tuple(s for s in standings if s.line is None),
        methods=tuple(sorted(methods, key=lambda one: one.order)),
    )


def _standing(
    method: str,
    attacked: Sequence[AttackRow],
    zero: tuple[AttackRow, ...],
    kept: dict[Cell, Row],
) -> Standing:
    own = tuple(one for one in attacked if one.method == method)
    own = tuple(sorted(own, key=lambda one: (one.task, one.seed)))
    fitting = tuple(sorted(zero, key=lambda one: (one.task, one.seed)))
    line = Line(method, tuple(kept[one.cell] for one in own)) if _edits(method) else None
    return Standing(method, own, fitting if len(fitting) == len(own) else (), line)


def _edits(method: str) -> bool:
    return method not in (BASE, RETAIN_ONLY)


def _together(counted: Iterable[Counted]) -> Rate:
    rate = pooled(one.rate for one in counted)
    assert rate is not None  # each method was attacked somewhere
    return rate


def _outcomes(rows: Sequence[AttackRow]) -> list[bool]:
    return [outcome for row in rows for outcome in row.found.worst.outcomes]
