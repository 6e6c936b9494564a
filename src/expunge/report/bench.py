"""A bench's page with tables and plots, as HTML and Markdown, and the plot as a file."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from expunge.evaluation.bench import COLUMNS, ERASED, RETAINED, Bench, Board, Line, Row, lines
from expunge.files import file_name, write_text
from expunge.report.html import environment
from expunge.report.leaderboard import brief, cell, least, points, spots
from expunge.statistics.rates import Estimate, Rate

PAGE, MARKDOWN, PLOT = "bench.html", "bench.md", "bench.svg"
OTHER_WORDS = ("synonyms", "descriptions")


class TaskGroup(NamedTuple):
    """Tasks with the same number of concepts, shown together."""

    title: str
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    lines: tuple[Line, ...]
    refused: tuple[Row, ...]


def panels(rows: Sequence[Row]) -> list[TaskGroup]:
    """A group for each number of concepts, smallest first."""
    found = []
    for count in sorted({row.concepts for row in rows}):
        own = [row for row in rows if row.concepts == count]
        title = "one thing at a time" if count == 1 else f"{count} things at once"
        found.append(
            TaskGroup(
                title,
                tuple(dict.fromkeys(row.task for row in own)),
                tuple(sorted({row.seed for row in own})),
                tuple(lines(own)),
                tuple(row for row in own if row.refused),
            )
        )
    return found


def write_page(
    bench: Bench, rows: Sequence[Row], folder: Path, boards: Sequence[Board] = ()
) -> Path:
    """Write the page in all its forms and return the path of the HTML.

    Args:
        bench: what was compared.
        rows: what was found.
        folder: where the page goes.
        boards: leaderboards under attack, one for each budget.

    Raises:
        ExpungeError: jinja2 isn't installed.
    """
    pages = environment()
    pages.globals.update(
        counts=counts,
        share=share,
        retained=RETAINED,
        erased=ERASED,
        other_words=OTHER_WORDS,
        brief=brief,
        cell=cell,
        least=least,
        points=points,
        spots=spots,
    )
    known = panels(rows)
    values = {
        "bench": bench,
        "boards": boards,
        "panels": known,
        "columns": [name for name in COLUMNS if any(name in row.edited for row in rows)],
        "rows": rows,
        "drifts": drifts(rows),
        "tasks": list(dict.fromkeys(row.task for row in rows)),
        "order": list(dict.fromkeys(line.method for panel in known for line in panel.lines)),
    }
    for one in boards:
        plot = pages.get_template("robustness.svg.j2").render(board=one)
        write_text(folder / f"robustness-{file_name(one.budget)}.svg", plot)
    for template, name in (
        ("bench.svg.j2", PLOT),
        ("bench.md.j2", MARKDOWN),
        ("bench.html.j2", PAGE),
    ):
        write_text(folder / name, pages.get_template(template).render(**values))
    return folder / PAGE


def drifts(rows: Sequence[Row]) -> dict[str, dict[str, str]]:
    """How far kept pictures moved, by method and task; for several seeds, the mean.

    In brackets: from the lowest to the highest bound of the seeds' 95 % intervals.
    """
    found: dict[str, dict[str, list[Estimate]]] = {}
    for row in rows:
        if row.drift:
            found.setdefault(row.method, {}).setdefault(row.task, []).append(row.drift)
    return {
        method: {task: _moved(estimates) for task, estimates in tasks.items()}
        for method, tasks in found.items()
    }


def _moved(found: Sequence[Estimate]) -> str:
    low = min(one.interval[0] for one in found)
    high = max(one.interval[1] for one in found)
    return f"{fmean(one.value for one in found):.2g} ({low:.2g}–{high:.2g})"


def counts(line: Line, *columns: str) -> str:
    """``base → edited of n (interval of the edited share)``."""
    before, after = line.base(*columns), line.edited(*columns)
    if before is None or after is None:
        return "–"
    return f"{before.successes} → {after.successes} of {after.n} ({_interval(after)})"


def share(rate: Rate) -> str:
    return f"{100 * rate.value:.1f} %, {_interval(rate)}"


def _interval(rate: Rate) -> str:
    low, high = (100 * bound for bound in rate.interval)
    return f"{low:.0f}–{high:.0f} %"
