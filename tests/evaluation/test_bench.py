"""The bench: what it compares, that it continues, and that its table adds up."""

import csv
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from expunge.errors import ExpungeError
from expunge.evaluation.bench import (
    COLUMNS,
    RETAINED,
    Bench,
    Cell,
    Line,
    Row,
    lines,
    run,
    running,
    write_table,
)
from expunge.evaluation.bench.plan import parts
from expunge.evaluation.records import Report
from expunge.evaluation.suite import Prompt, Shot
from expunge.files import file_name
from expunge.methods import METHODS
from expunge.models.emoji import catalog
from expunge.statistics.rates import Estimate, Rate

PLAN = {
    "suite": "emoji",
    "size": "brief",
    "seeds": [0, 1],
    "sampler": {"scheduler": "ddim", "steps": 2, "guidance_scale": 4.0},
    "methods": ["uce", "esd"],
    "tasks": {
        "pizza": {"erase": [{"target": "pizza"}]},
        "two things": {
            "seeds": [0],
            "methods": ["rece"],
            "erase": [{"target": "rocket"}, {"target": "ink", "kind": "style"}],
        },
    },
}


def written(folder: Path, plan: object) -> Path:
    path = folder / "plan.yaml"
    path.write_text(plan if isinstance(plan, str) else yaml.safe_dump(plan))
    return path


@pytest.fixture
def bench(tmp_path) -> Bench:
    return Bench.load(written(tmp_path, PLAN))


def row(method="uce", task="pizza", seed=0, *, left=1, kept=18, concepts=1, **values) -> Row:
    return Row(
        method=method,
        task=task,
        seed=seed,
        concepts=concepts,
        edit="0123456789abcdef",
        base={"its name": Rate(20, 20), "other objects": Rate(19, 20)},
        edited={"its name": Rate(left, 20), "other objects": Rate(kept, 20)},
        drift=Estimate(0.02, (0.01, 0.03), 40),
        seconds=2.0,
        core_seconds=3.0,
        memory=5e6,
        size=1e6,
        versions={"expunge": "0"},
        **values,
    )


# --- the plan


def test_the_projects_own_plan_asks_only_for_what_there_is():
    bench = Bench.load()
    assert {one for method in bench.known_methods for one in parts(method)} <= {*METHODS}
    known = {o.name for o in catalog().objects} | {s.name for s in catalog().styles}
    for task in bench.tasks.values():
        assert {concept.target for concept in task.erase.erase} <= known
        assert {concept.anchor for concept in task.erase.erase} <= known


def test_cells_go_seed_by_seed_and_task_by_task(bench):
    assert bench.cells() == [
        Cell("uce", "pizza", 0),
        Cell("esd", "pizza", 0),
        Cell("rece", "two things", 0),
        Cell("uce", "pizza", 1),
        Cell("esd", "pizza", 1),
    ]
    assert str(bench.cells()[0]) == "uce on pizza, seed 0"


def test_cells_can_be_chosen(bench):
    assert bench.cells(methods=["esd"]) == [Cell("esd", "pizza", 0), Cell("esd", "pizza", 1)]
    assert bench.cells(tasks=["two things"]) == [Cell("rece", "two things", 0)]
    assert bench.cells(methods=["rece"]) == [Cell("rece", "two things", 0)]
    assert bench.cells(["uce"], ["pizza"], [1]) == [Cell("uce", "pizza", 1)]


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"methods": ["spm"]}, "the bench has no method 'spm'; it has uce, esd, rece"),
        ({"tasks": ["cats"]}, "the bench has no task 'cats'; it has pizza, two things"),
        ({"seeds": [7]}, "no such cell"),
        ({"methods": ["rece"], "tasks": ["pizza"]}, "no such cell"),
    ],
)
def test_a_choice_of_nothing_is_an_error(bench, chosen, message):
    with pytest.raises(ExpungeError, match=message):
        bench.cells(**chosen)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ["ucee"]}, "unknown method 'ucee'; did you mean uce"),
        ({"tasks": {"x": {"erase": [{"target": "x"}], "methods": ["y"]}}}, "unknown method 'y'"),
        ({"methods": []}, "methods: .*at least 1"),
        ({"seeds": []}, "seeds: .*at least 1"),
        ({"tasks": {}}, "tasks: .*at least 1"),
        ({"tasks": {"x": {}}}, "each of its tasks has the entry erase"),
        ({"tasks": ["x"]}, "a bench is a mapping with the entries suite, size"),
        ({"tasks": {"x": {"erase": []}}}, "tasks.x.erase.erase"),
        ({"sampler": {"steps": 0}}, "sampler.steps"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_plan_with_a_mistake_is_refused(tmp_path, change, message):
    with pytest.raises(ExpungeError, match=message):
        Bench.load(written(tmp_path, {**PLAN, **change}))


@pytest.mark.parametrize(
    ("content", "message"), [("a: [", "not a YAML file"), ("", "a bench is a mapping")]
)
def test_a_file_that_is_no_plan_is_refused(tmp_path, content, message):
    with pytest.raises(ExpungeError, match=message):
        Bench.load(written(tmp_path, content))
    with pytest.raises(ExpungeError, match="can't read the bench"):
        Bench.load(tmp_path / "none.yaml")


# --- running


@pytest.fixture
def worked(monkeypatch) -> list[Cell]:
    """Cells are worked on in no time; esd refuses."""
    cells: list[Cell] = []

    def work(bench, folder, fingerprint, model, cell):
        cells.append(cell)
        if cell.method == "esd":
            return Row(**cell._asdict(), concepts=1, refused="it can't", versions={"a": "1"})
        return row(*cell)

    monkeypatch.setattr(running, "_work", work)
    monkeypatch.setattr(running, "_draw_base", lambda *_: None)
    return cells


def test_a_finished_cell_is_not_made_again(bench, worked, tmp_path):
    cells = bench.cells()
    first = dict(run(bench, tmp_path, cells[:2]))
    assert worked == cells[:2]
    rows = dict(run(bench, tmp_path, cells))
    assert worked == cells
    assert list(rows) == cells
    assert {cell: rows[cell] for cell in first} == first
    assert dict(run(bench, tmp_path, cells)) == rows
    assert worked == cells


def test_a_refusal_is_a_row_with_its_reason_and_is_kept_too(bench, worked, tmp_path):
    cell = Cell("esd", "pizza", 0)
    for _ in range(2):
        assert dict(run(bench, tmp_path, [cell]))[cell].refused == "it can't"
    assert worked == [cell]


def test_other_settings_are_other_cells(bench, worked, tmp_path):
    cell = Cell("uce", "pizza", 0)
    for changed in (
        bench,
        bench.model_copy(update={"size": "quick"}),
        bench.model_copy(update={"sampler": bench.sampler.model_copy(update={"steps": 3})}),
        Bench.load(
            written(tmp_path, {**PLAN, "tasks": {"pizza": {"erase": [{"target": "rocket"}]}}})
        ),
        bench.model_copy(update={"seeds": (0, 5)}),  # which changes nothing of this cell
    ):
        dict(run(changed, tmp_path, [cell]))
    assert len(worked) == 4


def test_a_row_that_is_broken_is_named(bench, worked, tmp_path):
    cell = Cell("uce", "pizza", 0)
    dict(run(bench, tmp_path, [cell]))
    (file,) = (tmp_path / "cells").iterdir()
    file.write_text(file.read_text()[:-20])
    with pytest.raises(ExpungeError, match="delete it to measure it again"):
        dict(run(bench, tmp_path, [cell]))


def test_a_method_that_refuses_says_why(bench, tmp_path, monkeypatch):
    def refusing(*_, **__):
        raise ExpungeError("it can't erase pizza")

    monkeypatch.setattr(running, "erase", refusing)
    monkeypatch.setattr(running, "_draw_base", lambda *_: None)
    cell = Cell("uce", "pizza", 0)
    found = dict(run(bench, tmp_path, [cell]))[cell]
    assert found.refused == "it can't erase pizza"
    assert (found.edited, found.drift, found.edit) == ({}, None, "")
    assert found.versions
    assert not (tmp_path / "edits").exists()


PARENT = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from expunge.evaluation.bench.workers import _start_worker

if __name__ == "__main__":
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(1, spawn, _start_worker, (1,))
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 600).result()
"""


def test_a_worker_does_not_outlive_a_killed_run(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    command = [sys.executable, str(tmp_path / "parent.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        worker = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    worker.wait(timeout=30)


@pytest.mark.slow
def test_a_cell_is_an_edit_of_the_bundled_model_measured_as_any(bench, tmp_path):
    from expunge import Edit, load
    from expunge.evaluation.evaluate import evaluate

    cell = Cell("uce", "pizza", 0)
    ((_, found),) = run(bench, tmp_path, [cell])
    (file,) = (tmp_path / "edits").iterdir()
    edit = Edit.load(file)
    assert found.edit == edit.id
    assert found.size == edit.size
    assert found.core_seconds > 0
    drawn = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    report: Report = evaluate(
        load("emoji"), edit, size="brief", seeds=(0,), sampler=bench.sampler, folder=tmp_path
    )
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")} == drawn
    (evaluation,) = report.evaluations
    for column, (groups, metric) in COLUMNS.items():
        rows = [r for r in evaluation.measurements if r.group in groups and r.metric == metric]
        if rows:
            pooled = Rate(sum(r.edited.successes for r in rows), sum(r.edited.n for r in rows))
            assert found.edited[column] == pooled
    assert {"its name", "other objects", "other styles"} <= found.edited.keys()
    assert found.protocols == (evaluation.protocol.id,)
    assert found.drift == evaluation.find("kept prompts", "feature drift").edited


# --- tables


def test_rows_of_a_method_are_pooled_and_the_best_balance_is_first():
    rows = [row("esd", left=20), row("uce", left=0), row("uce", seed=1, left=1)]
    best, worst = lines([*rows, Row(method="spm", task="pizza", seed=0, concepts=1, refused="no")])
    assert (best.method, worst.method) == ("uce", "esd")
    assert best.edited("its name") == Rate(1, 40)
    assert best.base("its name") == Rate(40, 40)
    assert best.edited(*RETAINED) == Rate(36, 40)
    assert best.edited("synonyms") is None
    assert best.median("core_seconds") == 3
    assert best.drift == pytest.approx(0.02)


def test_the_balance_is_the_harmonic_mean_of_erased_and_kept():
    assert Line("uce", (row(left=5, kept=15),)).balance == pytest.approx(0.75)
    assert Line("uce", (row(left=20, kept=20),)).balance == 0
    more = row(left=0, kept=20)
    more = more.model_copy(update={"edited": {**more.edited, "synonyms": Rate(10, 20)}})
    assert Line("uce", (more,)).balance == pytest.approx(3 / (1 + 1 + 2))


def test_the_table_has_a_line_a_cell_and_counts_that_add_up(tmp_path):
    rows = [
        row(),
        row("esd", left=3),
        Row(method="spm", task="a, b", seed=0, concepts=1, refused="no"),
    ]
    write_table(rows, tmp_path / "table.csv")
    with (tmp_path / "table.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [(one["method"], one["task"]) for one in table] == [
        ("uce", "pizza"),
        ("esd", "pizza"),
        ("spm", "a, b"),
    ]
    for line, made in zip(table, rows, strict=True):
        for column in COLUMNS:
            after = made.edited.get(column)
            found = [line[f"{column} {what}"] for what in ("base", "edited", "n")]
            counts = (made.base[column].successes, after.successes, after.n) if after else ("",) * 3
            assert found == [str(count) for count in counts]
    assert (table[2]["refused"], table[2]["seconds"], table[2]["drift"]) == ("no", "", "")
    assert float(table[0]["drift"]) == pytest.approx(0.02)


# --- names that become files


def test_no_task_name_leaves_the_folder(tmp_path):
    names = ["../../../evil", "a/b", "a\0b", "..", "x" * 300, "кот", "漢" * 200, "a b", "a-b"]
    tasks = dict.fromkeys(names, PLAN["tasks"]["pizza"])
    bench = Bench.load(written(tmp_path, {**PLAN, "tasks": tasks}))
    places = [running._place(bench, tmp_path / "out", "f", cell) for cell in bench.cells()]
    assert {place.resolve().parent for place in places} == {tmp_path / "out" / "cells"}
    assert len(set(places)) == len(places)
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
        place.with_suffix(".safetensors").touch()


def test_names_of_files_are_plain_where_words_are_and_never_alike():
    assert file_name("santa claus") == "santa-claus"
    words = ["santa claus", "santa-claus", "santa  claus", "santa/claus", "santa\nclaus", "", "."]
    names = [file_name(one) for one in words]
    assert len(set(names)) == len(words)
    assert all(re.fullmatch(r"\w[\w.-]*", name) for name in names)


def test_pictures_of_any_prompt_have_names_of_their_own():
    texts = ["", "кот", "猫", "!", "a cat", "A cat", "a  cat", "cat" * 200]
    shots = [
        Shot("g", Prompt(text=text or " ", expected={}), seed) for text in texts for seed in (0, 1)
    ]
    shots += [Shot("g", Prompt(text="a dog", expected={}), seed) for seed in range(20_000)]
    numbers = {shot.number for shot in shots}
    assert len(numbers) == len(shots)
    assert all(re.fullmatch(r"\w[\w.-]{0,99}", number) for number in numbers)
