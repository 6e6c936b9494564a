"""``expunge evaluate``: what an edit erased and what it kept, in figures."""

from functools import reduce
from operator import add
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console
from rich.table import Table

from expunge.cli import resumable
from expunge.edits.edit import Edit
from expunge.errors import ExpungeError
from expunge.evaluation.evaluate import evaluate as measure
from expunge.evaluation.evaluate import usual_sampler
from expunge.evaluation.records import Evaluation, Measurement
from expunge.generation.sampler import Sampler, SchedulerName
from expunge.models import load
from expunge.progress import shown
from expunge.report.words import Cell, cell, change, headline, question


class Sampling(BaseModel):
    """How pictures are drawn, where it isn't as the suite says."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    scheduler: SchedulerName | None = None
    """Of the denoising; "native" is the model's own."""
    steps: Annotated[int, Field(ge=1)] | None = None
    """Denoising steps."""
    guidance_scale: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = None
    """Classifier-free guidance; 1 is none."""


SAMPLING = Sampling()


def sampler_of(sampling: Sampling, suite: str) -> Sampler:
    """The suite's sampler with what was said otherwise."""
    return usual_sampler(suite).model_copy(update=sampling.model_dump(exclude_none=True))


def evaluate(
    *,
    edit: tuple[Path, ...],
    model: str = "emoji",
    suite: str = "emoji",
    size: Literal["brief", "quick", "full"] = "quick",
    seed: tuple[int, ...] = (),
    output: Path = Path("runs/eval"),
    sampling: Annotated[Sampling, Parameter(name="*")] = SAMPLING,
) -> None:
    """Measure what an edit erased and what it kept, on the same prompts and seeds.

    The folder gets the pictures, the judgement of each, and report.json, of which "expunge
    report" makes a page. A run that was stopped continues with the same command.

    Parameters
    ----------
    edit:
        An edit file; repeat it to measure several, each by itself, in one report.
    model:
        The base model that the edit was made for: "emoji", a folder, or a Hugging Face id.
    suite:
        The prompts and the judge.
    size:
        How many prompts and seeds: "brief" takes half a minute on two cores, "quick" a minute or
        two, "full" an hour.
    seed:
        A seed instead of the size's own; repeat it for more.
    output:
        Folder for pictures and results.
    """
    if not edit:
        raise ExpungeError("say which edit to measure with --edit FILE")
    edits = [Edit.load(path) for path in edit]
    with resumable(f"the finished pictures in {output}"), shown():
        base = load(model)
        reports = [
            measure(
                base,
                one,
                suite=suite,
                size=size,
                seeds=seed or None,
                sampler=sampler_of(sampling, suite),
                folder=output,
            )
            for one in edits
        ]
    report = reduce(add, reports)
    report.save(output)
    console = Console(highlight=False)
    for evaluation in report.evaluations:
        console.print(table(evaluation))
        show_headline(console, evaluation)
    console.print(f"written: {output / 'report.json'}; for a page: expunge report {output}")


def table(evaluation: Evaluation) -> Table:
    """Every measurement as a line, with 95 % intervals in brackets."""
    lines = Table("prompts", "measured", "base", "edited", "edited minus base")
    lines.title = f"{headline(evaluation).title}; in brackets 95 % intervals"
    for role in ("efficacy", "retention"):
        for measured in evaluation.measurements:
            if measured.role == role:
                lines.add_row(*_line(evaluation, measured))
        lines.add_section()
    return lines


def _line(evaluation: Evaluation, measured: Measurement) -> tuple[str, ...]:
    better = "higher" if measured.higher_is_better else "lower"
    return (
        measured.group,
        f"{question(evaluation, measured)}\n({better} is better)",
        _written(cell(measured.base)) if measured.base else "",
        _written(cell(measured.edited)),
        _written(change(measured)) if measured.difference else _scale(measured),
    )


def _written(shown: Cell) -> str:
    return f"{shown.value} ({shown.interval})\n{shown.cases}"


def _scale(measured: Measurement) -> str:
    return f"unrelated pictures: {cell(measured.reference).value}" if measured.reference else ""


def show_headline(console: Console, evaluation: Evaluation) -> None:
    """The sentences, erased and kept together."""
    said = headline(evaluation)
    console.print(f"\n[bold]{said.title}[/bold]")
    for sentence in said.sentences:
        console.print(f"- {sentence}")
