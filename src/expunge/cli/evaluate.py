"""``expunge evaluate``: measure what an edit erased and what it kept."""

from functools import reduce
from operator import add
from pathlib import Path
from typing import Literal

from rich.box import HEAVY_HEAD, SIMPLE
from rich.console import Console
from rich.table import Table

from expunge.cli import resumable
from expunge.cli.drawing import USUAL_SAMPLER, SamplerOptions
from expunge.cli.options import EditedModelName, PlanSeeds
from expunge.edits.edit import Edit
from expunge.errors import ExpungeError
from expunge.evaluation.evaluate import evaluate as measure
from expunge.evaluation.records import Evaluation, Measurement
from expunge.files import check_output
from expunge.models import load
from expunge.progress import shown
from expunge.report.words import TableCell, cell, change, headline, question

WIDE = 110
"""Letters in a line that the whole table needs."""


def evaluate(
    *,
    edit: tuple[Path, ...],
    model: EditedModelName = "emoji",
    suite: str | None = None,
    size: Literal["brief", "quick", "full"] = "quick",
    seed: PlanSeeds = (),
    output: Path = Path("runs/eval"),
    sampler: SamplerOptions = USUAL_SAMPLER,
) -> None:
    """Measure what an edit erased and what it kept, on the same prompts and seeds.

    The folder gets the pictures, the judgement of each, and report.json, which "expunge report"
    turns into a page. A run that was stopped continues with the same command.

    Parameters
    ----------
    edit:
        An edit file; repeat it to measure several, each on its own, in one report.
    suite:
        The prompts and the judge; the bundled model has its own.
    size:
        How many prompts and seeds: "brief" takes half a minute on two cores, "quick" a minute or
        two, "full" an hour.
    output:
        Folder for pictures and results.
    """
    if not edit:
        raise ExpungeError("say which edit to measure with --edit FILE")
    edits = [Edit.load(path) for path in edit]
    check_output(output, folder=True)
    with resumable(f"the finished pictures in {output}"), shown():
        base = load(model)
        reports = [
            measure(
                base,
                one,
                suite=suite,
                size=size,
                seeds=seed or None,
                sampler=sampler,
                folder=output,
            )
            for one in edits
        ]
    report = reduce(add, reports)
    report.save(output)
    console = Console(highlight=False, markup=False)
    for evaluation in report.evaluations:
        console.print(table(evaluation, console.width))
        show_headline(console, evaluation)
    console.print(f"written: {output / 'report.json'}; for a page: expunge report {output}")


def table(evaluation: Evaluation, width: int) -> Table:
    """A line for each measurement, with 95 % intervals in brackets.

    Args:
        evaluation: has the measurements.
        width: letters in a line of the terminal; where there are few, cells are narrow and high.
    """
    narrow = width < WIDE
    named = ("prompts, measured",) if narrow else ("prompts", "measured")
    lines = Table(
        *named, "base", "edited", "edited minus base", box=SIMPLE if narrow else HEAVY_HEAD
    )
    lines.title = f"{headline(evaluation).title}; in brackets 95 % intervals"
    for role in ("efficacy", "retention"):
        for measured in evaluation.measurements:
            if measured.role == role:
                lines.add_row(*_line(evaluation, measured, narrow))
        lines.add_section()
    return lines


def _line(evaluation: Evaluation, measured: Measurement, narrow: bool) -> tuple[str, ...]:
    better = "higher" if measured.higher_is_better else "lower"
    asked = f"{question(evaluation, measured)}\n({better} is better)"
    named = (f"{measured.group}:\n{asked}",) if narrow else (measured.group, asked)
    return (
        *named,
        _written(cell(measured.base), narrow) if measured.base else "",
        _written(cell(measured.edited), narrow),
        _written(change(measured), narrow) if measured.difference else _scale(measured),
    )


def _written(shown: TableCell, narrow: bool) -> str:
    return f"{shown.value}{chr(10) if narrow else ' '}({shown.interval})\n{shown.cases}"


def _scale(measured: Measurement) -> str:
    return f"unrelated pictures: {cell(measured.reference).value}" if measured.reference else ""


def show_headline(console: Console, evaluation: Evaluation) -> None:
    """Print the headline: what was erased, and what was kept."""
    said = headline(evaluation)
    console.print(f"\n{said.title}", style="bold", markup=False)
    for sentence in said.sentences:
        console.print(f"- {sentence}", markup=False)
    for gap in said.gaps:
        console.print(f"- {gap}", style="bold", markup=False)
