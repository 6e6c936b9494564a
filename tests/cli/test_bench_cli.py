"""``expunge bench``: a table and a page, in parts or at once."""

import csv

import pytest
import yaml

from expunge.cli import main
from expunge.evaluation.bench import Row, running
from expunge.statistics.rates import Estimate, Rate

PLAN = {
    "suite": "emoji",
    "size": "brief",
    "seeds": [0, 1],
    "sampler": {"steps": 2},
    "methods": ["uce", "esd"],
    "tasks": {"pizza": {"erase": [{"target": "pizza"}]}},
}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    def work(bench, folder, fingerprint, model, cell):
        if cell.method == "esd":
            return Row(**cell._asdict(), concepts=1, refused="no time", versions={"a": "1"})
        return Row(
            **cell._asdict(),
            concepts=1,
            base={"its name": Rate(9, 10), "other objects": Rate(9, 10)},
            edited={"its name": Rate(1, 10), "other objects": Rate(8, 10)},
            drift=Estimate(0.02, (0.01, 0.03), 10),
            versions={"a": "1"},
        )

    monkeypatch.setattr(running, "_work", work)
    monkeypatch.setattr(running, "_draw_base", lambda *_: None)


@pytest.fixture
def bench(tmp_path):
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(PLAN))
    fixed = [f"--plan={tmp_path / 'plan.yaml'}", f"--output={tmp_path / 'out'}"]
    return lambda *arguments: main(["bench", *fixed, *arguments])


def table(folder):
    with (folder / "out" / "table.csv").open() as file:
        return [(one["method"], one["seed"]) for one in csv.DictReader(file)]


def test_a_table_and_a_page_are_written_and_refusals_are_told(bench, tmp_path, capsys):
    assert bench() == 0
    assert table(tmp_path) == [("uce", "0"), ("esd", "0"), ("uce", "1"), ("esd", "1")]
    for name in ("bench.html", "bench.md", "bench.svg"):
        assert (tmp_path / "out" / name).exists()
    shown = capsys.readouterr().out
    assert "esd on pizza, seed 0: refused: no time" in shown
    assert "4 rows" in shown


def test_parts_are_chosen_in_the_order_of_the_plan(bench, tmp_path):
    assert bench("--only", "uce", "--seed", "1", "--seed", "0") == 0
    assert table(tmp_path) == [("uce", "0"), ("uce", "1")]


def test_methods_that_all_refuse_are_a_page_too(bench, tmp_path):
    assert bench("--only", "esd") == 0
    assert "no time" in (tmp_path / "out" / "bench.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--only", "spm"), "the bench has no method 'spm'"),
        (("--task", "cats"), "the bench has no task 'cats'"),
        (("--seed", "9"), "no such cell"),
        (("--jobs", "0"), "jobs"),
    ],
)
def test_a_mistake_is_one_line(bench, tmp_path, capsys, arguments, message):
    assert bench(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "out").exists()
