"""``expunge bench``: all methods on the bundled model, as one table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console

from expunge.cli import resumable
from expunge.errors import ExpungeError
from expunge.evaluation.bench import TABLE, Bench, Row, attack, board, run, write_table
from expunge.evaluation.red_team import RedTeam
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
    attacks: Annotated[bool, Parameter(name="--attack", negative="")] = False,
    budget: tuple[str, ...] = (),
    retain_only: Path | None = None,
    jobs: Annotated[int, Parameter(validator=Number(gte=1, lte=1024))] = 1,
) -> None:
    """Compare methods on the bundled model, with a row for each task and method.

    The folder gets table.csv, a page with plots as HTML and as Markdown, all edits and pictures. A
    run that was stopped continues with the same command. You can add other methods, tasks and
    seeds to the same folder later.

    With --attack, only the tasks and seeds that the plan attacks are made, each edit is attacked
    beside the base, and the page ranks methods by what survives.

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
    attacks:
        Attack the edits.
    budget:
        A budget of the plan for attacks, by its name: short or long in the project's own; repeat
        it for more. By default the plan's first.
    retain_only:
        Folder of a model that was trained without the attacked concepts: the row that shows what
        attacks find where there is nothing.
    jobs:
        Edits to make and measure at once. On a CPU, one per core is quickest.
    """
    chosen, budgets = Bench.load(plan), budget
    if attacks:
        budgets, task, seed = _attacked(chosen, budget, task, seed)
    elif budget or retain_only:
        raise ExpungeError("--budget and --retain-only are about attacks; add --attack")
    cells = chosen.cells(only, task, seed)
    check_output(output, folder=True)
    with resumable(f"the finished rows in {output}"), shown():
        rows = dict(run(chosen, output, cells, jobs=jobs))
        ordered = [rows[cell] for cell in chosen.cells() if cell in rows]
        found = [
            list(attack(chosen, output, ordered, budget=one, retain_only=retain_only, jobs=jobs))
            for one in budgets
        ]
    write_table(ordered, output / TABLE)
    if found:
        RedTeam(models=tuple(row.found for rows in found for row in rows)).save(output)
    page = write_page(chosen, ordered, output, [board(ordered, own) for own in found])
    _told(ordered, output, page)


def _attacked(
    bench: Bench, budgets: tuple[str, ...], tasks: tuple[str, ...], seeds: tuple[int, ...]
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[int, ...]]:
    """Budgets, and the tasks and seeds that are attacked among those that are asked for."""
    plan = bench.attacked
    for name in budgets:
        plan.calls(name)
    kept_tasks = tuple(one for one in plan.tasks if not tasks or one in tasks)
    kept_seeds = tuple(one for one in plan.seeds if not seeds or one in seeds)
    if not (kept_tasks and kept_seeds):
        raise ExpungeError(
            f"nothing to attack: the bench attacks {', '.join(plan.tasks)} with seed "
            f"{', '.join(map(str, plan.seeds))}"
        )
    return budgets or (next(iter(plan.budgets)),), kept_tasks, kept_seeds


def _told(rows: Sequence[Row], output: Path, page: Path) -> None:
    console = Console(highlight=False, markup=False)
    for row in rows:
        if row.refused:
            console.print(f"{row.cell}: refused: {row.refused}")
    console.print(f"{len(rows)} row{'s' * (len(rows) != 1)}: {output / TABLE}; as a page: {page}")
