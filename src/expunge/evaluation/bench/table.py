"""Rows of a bench, each what one edit did and cost, and the rows of a method pooled."""

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, harmonic_mean, median
from typing import Any, NamedTuple

from expunge.evaluation.bench.plan import Cell
from expunge.evaluation.scoring import DRAWN, right_of
from expunge.evaluation.suite import Record
from expunge.files import write_text
from expunge.statistics.rates import Estimate, Rate

KEPT, OTHER_PAIRS = ("other objects", "other styles"), ("other pairs",)
SHARED = (KEPT, OTHER_PAIRS)
"""Groups that show the same pictures for every concept of a task."""
COLUMNS = {
    "its name": (("explicit", "beside another"), DRAWN),
    "synonyms": (("synonyms",), DRAWN),
    "descriptions": (("implicit",), DRAWN),
    "neighbours": (("neighbours",), right_of("object")),
    "other objects": (KEPT, right_of("object")),
    "other styles": (KEPT, right_of("style")),
    "beside it": (("beside another",), right_of("beside")),
    "other pairs": (OTHER_PAIRS, right_of("object")),
}
"""For each column, the suite's groups and the metric that it counts."""
ERASED, RETAINED = tuple(COLUMNS)[:3], tuple(COLUMNS)[3:]

TABLE = "table.csv"


class Row(Record):
    """What one cell found."""

    method: str
    task: str
    seed: int
    concepts: int
    """How many were erased together."""
    refused: str = ""
    """Why the method can't do this; then all else is empty."""
    edit: str = ""
    base: Mapping[str, Rate] = {}
    """Rates of the unedited model, by column; columns that the task doesn't ask are missing."""
    edited: Mapping[str, Rate] = {}
    drift: Estimate | None = None
    """Drift of kept pictures: 1 - cosine of the judge's features, base to edited."""
    seconds: float = 0
    """Wall time of making the edit."""
    core_seconds: float = 0
    """Processor time of making the edit, summed over all cores."""
    memory: float = 0
    """Peak bytes while making the edit, beyond the loaded model."""
    size: float = 0
    """Bytes of the edit."""
    protocols: tuple[str, ...] = ()
    versions: Mapping[str, str] = {}

    @property
    def cell(self) -> Cell:
        return Cell(self.method, self.task, self.seed)


class Line(NamedTuple):
    """Rows of one method put together."""

    method: str
    rows: tuple[Row, ...]

    def base(self, *columns: str) -> Rate | None:
        return pooled(row.base.get(column) for row in self.rows for column in columns)

    def edited(self, *columns: str) -> Rate | None:
        return pooled(row.edited.get(column) for row in self.rows for column in columns)

    @property
    def balance(self) -> float | None:
        """Harmonic mean of three shares: gone by name, gone by other words, kept right."""
        named, kept = self.edited("its name"), self.edited(*RETAINED)
        other = self.edited("synonyms", "descriptions")
        if named is None or kept is None:
            return None
        gone = [1 - rate.value for rate in (named, other) if rate]
        return harmonic_mean([*gone, kept.value])

    @property
    def drift(self) -> float:
        """Mean over the rows."""
        return fmean(row.drift.value for row in self.rows if row.drift)

    def median(self, cost: str) -> float:
        """Of a cost of the rows, e.g. ``core_seconds``."""
        return median(float(getattr(row, cost)) for row in self.rows)


def lines(rows: Iterable[Row]) -> list[Line]:
    """The rows of each method that weren't refused, pooled; the best balance first."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if not row.refused:
            found[row.method].append(row)
    pooled = [Line(method, tuple(own)) for method, own in found.items()]
    return sorted(pooled, key=lambda line: -(line.balance or 0))


def write_table(rows: Sequence[Row], path: Path) -> None:
    """One line a cell, with counts, as CSV."""
    text = io.StringIO()
    names = [f"{column} {what}" for column in COLUMNS for what in ("base", "edited", "n")]
    heads = [
        *("method", "task", "seed", "concepts", "edit", *names, "drift", "drift low", "drift high"),
        *("seconds", "core seconds", "memory bytes", "edit bytes", "protocols", "refused"),
    ]
    table = csv.DictWriter(text, heads, restval="", lineterminator="\n")
    table.writeheader()
    for row in rows:
        own: dict[str, Any] = {
            "method": row.method,
            "task": row.task,
            "seed": row.seed,
            "concepts": row.concepts,
            "refused": row.refused,
        }
        if not row.refused:
            own |= {
                "edit": row.edit,
                "seconds": f"{row.seconds:.2f}",
                "core seconds": f"{row.core_seconds:.2f}",
                "memory bytes": f"{row.memory:.0f}",
                "edit bytes": f"{row.size:.0f}",
                "protocols": " ".join(row.protocols),
            }
        for column, after in row.edited.items():
            own |= {
                f"{column} base": row.base[column].successes,
                f"{column} edited": after.successes,
                f"{column} n": after.n,
            }
        if row.drift:
            own |= {
                "drift": f"{row.drift.value:.6f}",
                "drift low": f"{row.drift.interval[0]:.6f}",
                "drift high": f"{row.drift.interval[1]:.6f}",
            }
        table.writerow(own)
    write_text(path, text.getvalue())


def pooled(rates: Iterable[object]) -> Rate | None:
    """All rates among ``rates`` as one; ``None`` if there are none."""
    known = [rate for rate in rates if isinstance(rate, Rate)]
    if not known:
        return None
    return Rate(sum(rate.successes for rate in known), sum(rate.n for rate in known))
