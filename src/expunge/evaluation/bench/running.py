"""Making the edits of a bench and measuring each, one after the other or side by side."""

import warnings
from collections.abc import Iterator, Sequence
from functools import partial, reduce
from operator import add
from pathlib import Path
from time import perf_counter, process_time

from pydantic import ValidationError

from expunge.concepts import Concept, explain
from expunge.edits.edit import Edit
from expunge.errors import ExpungeError, Ignored
from expunge.evaluation.bench import presets
from expunge.evaluation.bench.plan import Bench, Cell, parts
from expunge.evaluation.bench.table import COLUMNS, SHARED, Row, pooled
from expunge.evaluation.bench.workers import each
from expunge.evaluation.drawing import draw
from expunge.evaluation.evaluate import Question, measured, question
from expunge.evaluation.records import Evaluation, Measurement
from expunge.evaluation.scoring import FEATURES
from expunge.files import digest, write_json
from expunge.generation import Sampler
from expunge.memory import peak_memory
from expunge.methods import METHODS, erase
from expunge.models import Model, load
from expunge.progress import track
from expunge.statistics.rates import Estimate
from expunge.versions import versions


def run(
    bench: Bench, folder: Path, cells: Sequence[Cell], *, jobs: int = 1
) -> Iterator[tuple[Cell, Row]]:
    """Yield every cell's row, first those of earlier runs.

    Args:
        bench: what is compared.
        folder: for pictures, edits and rows; later runs may use it too.
        cells: some of ``bench.cells()``.
        jobs: cells to work on at once, each in a process with its share of the cores.

    Raises:
        ExpungeError: the suite doesn't know a concept, or a picture can't be judged.
    """
    model = load("emoji")
    bench = bench.model_copy(update={"sampler": Sampler.of(model, bench.sampler)})
    fingerprint = model.fingerprint()
    places = {cell: _place(bench, folder, fingerprint, cell) for cell in cells}
    rows = {cell: _read(places[cell]) for cell in cells}
    done = {cell: row for cell, row in rows.items() if row}
    yield from done.items()
    open_cells = [cell for cell in cells if cell not in done]
    if not open_cells:
        return
    _draw_base(bench, folder, model, fingerprint, open_cells)
    worked = each(partial(_work, bench, folder, fingerprint), open_cells, model, jobs)
    for cell, row in track(worked, "edits", total=len(cells), start=len(done)):
        write_json(places[cell], row.model_dump(mode="json"))
        yield cell, _read(places[cell]) or row  # as a later run reads it, so that pages are alike


# --- one cell


def _place(bench: Bench, folder: Path, fingerprint: str, cell: Cell) -> Path:
    """The file of a cell's row; its name depends on everything that the row depends on."""
    concepts = bench.tasks[cell.task].erase.erase
    made_with = [
        METHODS.get(part)(**presets.settings(part, *concepts)).model_dump(mode="json")
        for part in parts(cell.method)
    ]
    key = digest(
        [
            bench.model_dump(mode="json", include={"suite", "size", "sampler"}),
            presets.policy(*concepts).model_dump(mode="json"),
            made_with,
            fingerprint,
        ]
    )[:8]
    return folder / "cells" / f"{cell.stem}-{key}.json"


def edit_of(bench: Bench, folder: Path, fingerprint: str, cell: Cell) -> Path:
    """The file of a cell's edit."""
    return folder / "edits" / f"{_place(bench, folder, fingerprint, cell).stem}.safetensors"


def _read(place: Path) -> Row | None:
    if not place.exists():
        return None
    try:
        return Row.model_validate_json(place.read_bytes())
    except ValidationError as error:
        raise ExpungeError(f"{place}: {explain(error)}; delete it to measure it again") from None


def _draw_base(
    bench: Bench, folder: Path, model: Model, fingerprint: str, cells: Sequence[Cell]
) -> None:
    """The unedited model's pictures of all cells, once."""
    firsts = {(cell.task, cell.seed): cell for cell in cells}
    shots = [shot for cell in firsts.values() for shot in _asked(bench, cell).shots]
    draw(model, shots, bench.sampler, folder, fingerprint=fingerprint)


def _asked(bench: Bench, cell: Cell) -> Question:
    return question(
        bench.suite,
        bench.tasks[cell.task].erase.erase,
        size=bench.size,
        seeds=(cell.seed,),
        sampler=bench.sampler,
    )


def _work(bench: Bench, folder: Path, fingerprint: str, model: Model, cell: Cell) -> Row:
    """Make one edit and measure it."""
    concepts = bench.tasks[cell.task].erase.erase
    known = {**cell._asdict(), "concepts": len(concepts)}
    wall, core = perf_counter(), process_time()
    with peak_memory() as used:
        try:
            edit = _made(model, cell, concepts)
        except ExpungeError as error:
            return Row(**known, refused=str(error), versions=versions())
    seconds, core_seconds = perf_counter() - wall, process_time() - core
    edit.save(edit_of(bench, folder, fingerprint, cell))
    evaluations = measured(_asked(bench, cell), model, folder, edit=edit, fingerprint=fingerprint)
    found = {column: _measurements(evaluations, column) for column in COLUMNS}
    base = {column: pooled(one.base for one in those) for column, those in found.items()}
    after = {column: pooled(one.edited for one in those) for column, those in found.items()}
    return Row(
        **known,
        edit=edit.id,
        base={column: rate for column, rate in base.items() if rate},
        edited={column: rate for column, rate in after.items() if rate},
        drift=_drift(evaluations[0]),
        seconds=seconds,
        core_seconds=core_seconds,
        memory=used.added,
        size=edit.size,
        protocols=tuple(sorted({one.protocol.id for one in evaluations})),
        versions=versions(),
    )


def _made(model: Model, cell: Cell, concepts: Sequence[Concept]) -> Edit:
    """A cell's edit, each part of which is made for the base."""
    with warnings.catch_warnings():
        # The same policy is for every method; what some have no use for is told in their pages.
        warnings.simplefilter("ignore", Ignored)
        made = [
            erase(
                model,
                presets.policy(*concepts),
                part,
                seed=cell.seed,
                **presets.settings(part, *concepts),
            )
            for part in parts(cell.method)
        ]
    return reduce(add, made)


def _measurements(evaluations: Sequence[Evaluation], column: str) -> list[Measurement]:
    """The measurements that a column counts, of all concepts."""
    groups, metric = COLUMNS[column]
    if groups in SHARED:  # counted once
        evaluations = evaluations[:1]
    found = [one for e in evaluations for one in e.measurements]
    return [one for one in found if one.group in groups and one.metric == metric]


def _drift(evaluation: Evaluation) -> Estimate:
    one = next(m for m in evaluation.measurements if m.metric == FEATURES)
    assert isinstance(one.edited, Estimate)
    return one.edited
