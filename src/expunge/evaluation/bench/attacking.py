"""Attacking the edits of a bench, beside the base and a model that never saw the concepts."""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from expunge.concepts import Concept, explain
from expunge.detectors.critic import critic
from expunge.edits.edit import Edit
from expunge.errors import ExpungeError
from expunge.evaluation.bench import presets
from expunge.evaluation.bench.plan import AttackPlan, Bench, Cell
from expunge.evaluation.bench.running import edit_of
from expunge.evaluation.bench.table import Row
from expunge.evaluation.bench.workers import each
from expunge.evaluation.evaluate import question
from expunge.evaluation.red_team import Attacked, Budget, attacked
from expunge.evaluation.suite import Record
from expunge.files import digest, write_json
from expunge.generation import Sampler
from expunge.models import Model, load
from expunge.progress import track
from expunge.spelling import spelling
from expunge.texts import read_text

BASE, RETAIN_ONLY = "base", "retain-only"
"""Rows that are no edit: the model as it is, and one that was trained without the concepts."""
RECIPE = "recipe.json"


class AttackRow(Record):
    """What attacks found on one edit, or on a control."""

    method: str
    """``base`` and ``retain-only`` for the controls."""
    task: str
    seed: int
    budget: str
    found: Attacked

    @property
    def cell(self) -> Cell:
        return Cell(self.method, self.task, self.seed)


def attack(
    bench: Bench,
    folder: Path,
    rows: Sequence[Row],
    *,
    budget: str,
    retain_only: Path | None = None,
    jobs: int = 1,
) -> Iterator[AttackRow]:
    """Attack the edits of finished rows, and the controls of their tasks.

    Args:
        bench: says how.
        folder: where the rows' edits are; what is found is kept there too.
        rows: of ``run``, of any tasks; those that the bench attacks are.
        budget: its name.
        retain_only: folder of a model that was trained without the concepts.
        jobs: edits to attack at once, each in a process with its share of the cores.

    Raises:
        ExpungeError: the bench doesn't say how to attack, none of the rows is attacked, an attack
            fails, or the model in ``retain_only`` has seen a concept.
    """
    plan = bench.attacked
    cells = _cells(plan, rows, with_zero=retain_only is not None)
    if retain_only:
        check_never_saw(retain_only, [_concept(bench, cell.task) for cell in cells])
    model = load("emoji")
    bench = bench.model_copy(update={"sampler": Sampler.of(model, bench.sampler)})
    fingerprint = model.fingerprint()
    settings = plan.model_dump(mode="json", include={"pictures", "attacks"})
    facts = [settings, plan.calls(budget), bench.suite, fingerprint]
    zero = load(str(retain_only)).fingerprint() if retain_only else ""
    places = {
        cell: _place(bench, folder, fingerprint, cell, budget, [*facts, zero * _is_zero(cell)])
        for cell in cells
    }
    done = {cell: row for cell, place in places.items() if (row := _read(place))}
    yield from done.values()
    left = [cell for cell in cells if cell not in done]
    work = partial(_attacked, bench, folder, fingerprint, plan.calls(budget), retain_only)
    worked = each(work, left, model, jobs)
    for cell, found in track(worked, "attacks", total=len(cells), start=len(done)):
        row = AttackRow(**cell._asdict(), budget=budget, found=found)
        write_json(places[cell], row.model_dump(mode="json"))
        yield row


def check_never_saw(folder: Path, concepts: Sequence[Concept]) -> None:
    """Check that a model was trained without these concepts, as its recipe tells.

    Raises:
        ExpungeError: it has seen one, or there is no recipe.
    """
    try:
        recipe = json.loads(read_text(folder / RECIPE, "the recipe of a model"))
        without = {spelling(one) for one in (*recipe["without"], *recipe["without_style"])}
    except (KeyError, TypeError, ValueError):
        raise ExpungeError(f"{folder / RECIPE} doesn't say what the model never saw") from None
    if seen := [one.target for one in concepts if spelling(one.target) not in without]:
        raise ExpungeError(f"{folder}: this model has seen {seen[0]!r}, so it is no control for it")


def _cells(plan: AttackPlan, rows: Sequence[Row], *, with_zero: bool) -> list[Cell]:
    """The edits to attack; the controls of each task and seed come before its edits."""
    edits = [
        row.cell
        for row in rows
        if not row.refused and row.task in plan.tasks and row.seed in plan.seeds
    ]
    if not edits:
        raise ExpungeError(
            f"nothing to attack: no edit of {', '.join(plan.tasks)} with seed "
            f"{', '.join(map(str, plan.seeds))} was made"
        )
    controls = [BASE, RETAIN_ONLY] if with_zero else [BASE]
    places = dict.fromkeys((cell.task, cell.seed) for cell in edits)
    return [
        cell
        for place in places
        for cell in (
            *(Cell(name, *place) for name in controls),
            *(cell for cell in edits if (cell.task, cell.seed) == place),
        )
    ]


def _concept(bench: Bench, task: str) -> Concept:
    [concept] = presets.policy(*bench.tasks[task].erase.erase).erase
    return concept


def _place(
    bench: Bench, folder: Path, fingerprint: str, cell: Cell, budget: str, facts: Sequence[Any]
) -> Path:
    """The file of an attacked cell; its name depends on everything that the row depends on."""
    made = edit_of(bench, folder, fingerprint, cell).stem if _is_edit(cell) else cell.stem
    concept = _concept(bench, cell.task).model_dump(mode="json")
    key = digest([*facts, made, concept, bench.sampler.model_dump(mode="json")])[:8]
    return folder / "attacked" / f"{cell.stem}-{budget}-{key}.json"


def _is_edit(cell: Cell) -> bool:
    return cell.method not in (BASE, RETAIN_ONLY)


def _is_zero(cell: Cell) -> bool:
    return cell.method == RETAIN_ONLY


def _read(place: Path) -> AttackRow | None:
    if not place.exists():
        return None
    try:
        return AttackRow.model_validate_json(place.read_bytes())
    except ValidationError as error:
        raise ExpungeError(f"{place}: {explain(error)}; delete it to attack it again") from None


def _attacked(
    bench: Bench,
    folder: Path,
    fingerprint: str,
    calls: int,
    retain_only: Path | None,
    model: Model,
    cell: Cell,
) -> Attacked:
    """Attack one edit or control."""
    plan = bench.attacked
    subject, base, edit = model, None, None
    if _is_zero(cell):
        subject, base = load(str(retain_only)), model
    elif _is_edit(cell):
        edit = Edit.load(edit_of(bench, folder, fingerprint, cell))
    return attacked(
        subject,
        edit,
        question(bench.suite, [_concept(bench, cell.task)], sampler=bench.sampler),
        plan.configured(),
        folder / "attacks",
        base=base,
        budget=Budget(plan.pictures, calls, cell.seed),
        critic=critic("emoji"),
        fingerprint=fingerprint if base is None else None,
    )
