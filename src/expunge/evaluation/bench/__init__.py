"""Methods x tasks x seeds on the bundled model, as one table that can be stopped and continued.

A cell of the table is one edit: made, timed, and measured with a suite. Each finished cell is a
file, so a run goes on where it was stopped, and several runs fill one folder.
"""

import csv
import io
import multiprocessing
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.resources import files
from pathlib import Path
from statistics import fmean, harmonic_mean, median
from threading import Event, Thread
from time import perf_counter, process_time
from typing import Annotated, Any, NamedTuple

import psutil
import yaml
from pydantic import Field, ValidationError

from expunge.concepts import Policy, explain
from expunge.errors import ExpungeError
from expunge.evaluation.evaluate import Question, draw, measured, question
from expunge.evaluation.records import Evaluation, Measurement
from expunge.evaluation.scoring import DRAWN, FEATURES, right_of
from expunge.evaluation.suite import Record
from expunge.files import digest, write_json, write_text
from expunge.generation import Sampler
from expunge.methods import METHODS, erase, versions
from expunge.metrics.rates import Estimate, Rate
from expunge.models import Model, load
from expunge.models.emoji import presets
from expunge.progress import track

KEPT = ("other objects", "other styles")
COLUMNS = {
    "its name": (("explicit",), DRAWN),
    "synonyms": (("synonyms",), DRAWN),
    "descriptions": (("implicit",), DRAWN),
    "neighbours": (("neighbours",), right_of("object")),
    "other objects": (KEPT, right_of("object")),
    "other styles": (KEPT, right_of("style")),
}
"""Groups of the suite that a column counts, and what is counted."""
ERASED, RETAINED = tuple(COLUMNS)[:3], tuple(COLUMNS)[3:]

TABLE = "table.csv"


class Task(Record):
    """Concepts that are erased together."""

    erase: Policy
    methods: tuple[str, ...] = ()
    """Instead of the bench's own."""
    seeds: tuple[int, ...] = ()


class Cell(NamedTuple):
    """One edit of the table."""

    method: str
    task: str
    seed: int

    def __str__(self) -> str:
        return f"{self.method} on {self.task}, seed {self.seed}"


class Bench(Record):
    """What is compared, and how it is measured."""

    suite: str
    size: str
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    """Each decides both a training and the noise of the pictures."""
    sampler: Sampler
    methods: Annotated[tuple[str, ...], Field(min_length=1)]
    tasks: Annotated[dict[str, Task], Field(min_length=1)]

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None = None) -> "Bench":
        """Read a YAML file, by default the project's own.

        Raises:
            ExpungeError: it can't be read, or an entry is wrong or unknown.
        """
        source = Path(path) if path else files(__package__).joinpath("emoji.yaml")
        try:
            content = yaml.safe_load(source.read_text(encoding="utf-8"))
        except OSError as error:
            raise ExpungeError(f"{path}: can't read the bench: {error.strerror}") from None
        except yaml.YAMLError as error:
            raise ExpungeError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from None
        try:
            tasks = {
                name: {**task, "erase": {"erase": task["erase"]}}
                for name, task in content["tasks"].items()
            }
            bench = cls.model_validate({**content, "tasks": tasks})
        except ValidationError as error:
            raise ExpungeError(f"{path or 'bench.yaml'}: {explain(error)}") from None
        except (TypeError, KeyError, AttributeError):
            raise ExpungeError(
                f"{path}: a bench is a mapping with the entries {', '.join(cls.model_fields)}; "
                "each of its tasks has the entry erase"
            ) from None
        for method in bench.known_methods:
            METHODS.get(method)
        return bench

    @property
    def known_methods(self) -> tuple[str, ...]:
        """Its own, then those of single tasks."""
        own = (method for task in self.tasks.values() for method in task.methods)
        return tuple(dict.fromkeys((*self.methods, *own)))

    def cells(
        self, methods: Sequence[str] = (), tasks: Sequence[str] = (), seeds: Sequence[int] = ()
    ) -> list[Cell]:
        """All cells, or those of some methods, tasks and seeds; seed by seed, task by task.

        Raises:
            ExpungeError: there is no such method or task in the bench, or no such cell.
        """
        for asked, known, noun in (
            (methods, self.known_methods, "method"),
            (tasks, self.tasks, "task"),
        ):
            if missing := [name for name in asked if name not in known]:
                raise ExpungeError(
                    f"the bench has no {noun} {missing[0]!r}; it has {', '.join(known)}"
                )
        cells = [
            Cell(method, name, seed)
            for name, task in self.tasks.items()
            for seed in task.seeds or self.seeds
            for method in task.methods or self.methods
            if (not methods or method in methods)
            and (not tasks or name in tasks)
            and (not seeds or seed in seeds)
        ]
        if not cells:
            raise ExpungeError("no such cell in the bench: nothing would be measured")
        return sorted(cells, key=lambda cell: cell.seed)  # stable: a first whole table comes early


class Row(Record):
    """What one cell found."""

    method: str
    task: str
    seed: int
    concepts: int
    """How many were erased together."""
    refused: str = ""
    """Why the method can't do this, where it says so; all else is empty then."""
    edit: str = ""
    base: Mapping[str, Rate] = {}
    """Of the unedited model, by column; without those that the task doesn't ask."""
    edited: Mapping[str, Rate] = {}
    drift: Estimate | None = None
    """Of kept pictures: 1 - cosine of the judge's features, base to edited."""
    seconds: float = 0
    """Wall time of making the edit."""
    core_seconds: float = 0
    """Processor time of the same, on all cores together."""
    memory: float = 0
    """Bytes that making it took beyond what the loaded model had."""
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
        return _pooled(row.base.get(column) for row in self.rows for column in columns)

    def edited(self, *columns: str) -> Rate | None:
        return _pooled(row.edited.get(column) for row in self.rows for column in columns)

    @property
    def balance(self) -> float | None:
        """Harmonic mean of what is gone by name, gone by other words, and right of the rest."""
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


def run(
    bench: Bench, folder: Path, cells: Sequence[Cell], *, jobs: int = 1
) -> Iterator[tuple[Cell, Row]]:
    """Yield every cell's row, those of earlier runs first.

    Args:
        bench: what is compared.
        folder: for pictures, edits and rows; other runs may use it too, one after the other.
        cells: some of ``bench.cells()``.
        jobs: cells that are worked on side by side, each in a process with its share of the cores.

    Raises:
        ExpungeError: the suite doesn't know a concept, or a picture can't be judged.
    """
    model = load("emoji")
    fingerprint = model.fingerprint()
    places = {cell: _place(bench, folder, fingerprint, cell) for cell in cells}
    rows = {cell: _read(places[cell]) for cell in cells}
    done = {cell: row for cell, row in rows.items() if row}
    yield from done.items()
    open_cells = [cell for cell in cells if cell not in done]
    if not open_cells:
        return
    _draw_base(bench, folder, model, open_cells)
    worked = (
        ((cell, _work(bench, folder, model, cell)) for cell in open_cells)
        if jobs == 1
        else _side_by_side(bench, folder, open_cells, jobs)
    )
    for cell, row in track(worked, "edits", total=len(cells), start=len(done)):
        write_json(places[cell], row.model_dump(mode="json"))
        yield cell, row


def lines(rows: Iterable[Row]) -> list[Line]:
    """The rows of each method that could do something, pooled; the best balance first."""
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


# --- one cell


def _place(bench: Bench, folder: Path, fingerprint: str, cell: Cell) -> Path:
    """The file of a cell's row; its name changes with whatever would change the row."""
    task = bench.tasks[cell.task]
    settings = presets.settings(cell.method, *task.erase.erase)
    key = digest(
        [
            bench.model_dump(mode="json", include={"suite", "size", "sampler"}),
            task.erase.model_dump(mode="json", exclude={"limits"}),
            METHODS.get(cell.method)(**settings).model_dump(mode="json"),
            fingerprint,
        ]
    )[:8]
    return folder / "cells" / f"{cell.method}-{cell.task.replace(' ', '-')}-{cell.seed}-{key}.json"


def _read(place: Path) -> Row | None:
    if not place.exists():
        return None
    try:
        return Row.model_validate_json(place.read_bytes())
    except ValidationError as error:
        raise ExpungeError(f"{place}: {explain(error)}; delete it to measure it again") from None


def _draw_base(bench: Bench, folder: Path, model: Model, cells: Sequence[Cell]) -> None:
    """The unedited model's pictures of all cells, once."""
    firsts = {(cell.task, cell.seed): cell for cell in cells}
    shots = [shot for cell in firsts.values() for shot in _asked(bench, cell).shots]
    draw(model, shots, bench.sampler, folder)


def _asked(bench: Bench, cell: Cell) -> Question:
    return question(
        bench.suite,
        bench.tasks[cell.task].erase.erase,
        size=bench.size,
        seeds=(cell.seed,),
        sampler=bench.sampler,
    )


def _work(bench: Bench, folder: Path, model: Model, cell: Cell) -> Row:
    """Make one edit and measure it."""
    concepts = bench.tasks[cell.task].erase.erase
    known = {**cell._asdict(), "concepts": len(concepts)}
    place = (
        folder / "edits" / f"{_place(bench, folder, model.fingerprint(), cell).stem}.safetensors"
    )
    with _Costs() as costs:
        try:
            edit = erase(
                model,
                presets.policy(*concepts),
                cell.method,
                seed=cell.seed,
                **presets.settings(cell.method, *concepts),
            )
        except ExpungeError as error:
            return Row(**known, refused=str(error), versions=versions())
    edit.save(place)
    evaluations = measured(_asked(bench, cell), model, folder, edit=edit)
    found = {column: _measurements(evaluations, column) for column in COLUMNS}
    base = {column: _pooled(one.base for one in those) for column, those in found.items()}
    after = {column: _pooled(one.edited for one in those) for column, those in found.items()}
    return Row(
        **known,
        edit=edit.id,
        base={column: rate for column, rate in base.items() if rate},
        edited={column: rate for column, rate in after.items() if rate},
        drift=_drift(evaluations[0]),
        seconds=costs.seconds,
        core_seconds=costs.core_seconds,
        memory=costs.memory,
        size=edit.size,
        protocols=tuple(sorted({one.protocol.id for one in evaluations})),
        versions=versions(),
    )


def _measurements(evaluations: Sequence[Evaluation], column: str) -> list[Measurement]:
    """Those of all concepts together."""
    groups, metric = COLUMNS[column]
    if groups == KEPT:  # the same pictures for every concept, to be counted once
        evaluations = evaluations[:1]
    found = [one for e in evaluations for one in e.measurements]
    return [one for one in found if one.group in groups and one.metric == metric]


def _drift(evaluation: Evaluation) -> Estimate:
    one = next(m for m in evaluation.measurements if m.metric == FEATURES)
    assert isinstance(one.edited, Estimate)
    return one.edited


def _pooled(rates: Iterable[object]) -> Rate | None:
    known = [rate for rate in rates if isinstance(rate, Rate)]
    if not known:
        return None
    return Rate(sum(rate.successes for rate in known), sum(rate.n for rate in known))


# --- costs and processes


class _Costs:
    """Time and memory of a block; a thread looks at the process now and then."""

    seconds = core_seconds = memory = 0.0

    def __enter__(self) -> "_Costs":
        process, over = psutil.Process(), Event()
        before = process.memory_info().rss

        def look() -> None:
            while not over.wait(0.02):
                self.memory = max(self.memory, process.memory_info().rss - before)

        self._over, self._watch = over, Thread(target=look, daemon=True)
        self._watch.start()
        self._start = perf_counter(), process_time()
        return self

    def __exit__(self, *_: object) -> None:
        wall, core = self._start
        self.seconds, self.core_seconds = perf_counter() - wall, process_time() - core
        self._over.set()
        self._watch.join()


def _side_by_side(
    bench: Bench, folder: Path, cells: Sequence[Cell], jobs: int
) -> Iterator[tuple[Cell, Row]]:
    """Each cell in one of ``jobs`` processes; rows as they come."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, _start_worker, (threads,)) as pool:
        futures = {pool.submit(_in_worker, bench, folder, cell): cell for cell in cells}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_worker_model: list[Model] = []


def _start_worker(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    _worker_model.append(load("emoji"))


def _in_worker(bench: Bench, folder: Path, cell: Cell) -> Row:
    return _work(bench, folder, _worker_model[0], cell)
