"""``expunge bench``: all methods on the bundled model, as one table."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console

from expunge.cli import resumable
from expunge.evaluation.bench import TABLE, Bench, run, write_table
from expunge.files import check_output
from expunge.progress import shown
from expunge.report.bench import write_page


def bench(
    *,
    output: Path = Path("runs/bench"),
    plan: Path | None = None,
    only: tuple[str, ...] = (),
    task: tuple[str, ...] = (),
    seed: tuple[int, ...] = (),
    jobs: Annotated[int, Parameter(validator=Number(gte=1, lte=1024))] = 1,
) -> None:
    """Compare methods on the bundled model, with a row for each task and method.

    The folder gets table.csv, a page with plots as HTML and as Markdown, all edits and pictures. A
    run that was stopped continues with the same command. You can add other methods, tasks and
    seeds to the same folder later.

    Parameters
    ----------
    output:
        Folder for the table and everything behind it.
    plan:
        YAML file with methods, tasks, seeds and settings to use instead of the project's own.
    only:
        A method of the plan; repeat it for more. All by default.
    task:
        A task of the plan; repeat it for more. All by default.
    seed:
        A seed of the plan; repeat it for more. All by default.
    jobs:
        Edits to make and measure at once. On a CPU, one per core is quickest.
    """
    chosen = Bench.load(plan)
    cells = chosen.cells(only, task, seed)
    check_output(output, folder=True)
    with resumable(f"the finished rows in {output}"), shown():
        rows = dict(run(chosen, output, cells, jobs=jobs))
    ordered = [rows[cell] for cell in chosen.cells() if cell in rows]
    write_table(ordered, output / TABLE)
    page = write_page(chosen, ordered, output)
    console = Console(highlight=False, markup=False)
    for row in ordered:
        if row.refused:
            console.print(f"{row.cell}: refused: {row.refused}")
    console.print(
        f"{len(ordered)} row{'s' * (len(ordered) != 1)}: {output / TABLE}; as a page: {page}"
    )
