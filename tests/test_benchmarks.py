"""Every benchmark runs: each script with as little of everything as it takes."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent.parent / "benchmarks"
PICO = ("--model", "pico")
RUNS: dict[str, list[tuple[str, ...]]] = {
    "closed_form": [(*PICO, "--runs", "1")],
    "embedding_probe": [
        (
            *PICO,
            *[
                "--steps",
                "1",
                "--seeds",
                "1",
                "--pictures",
                "1",
                "--drawn",
                "1",
                "--methods",
                "rece",
                "cpe",
            ],
        )
    ],
    "gated": [
        ("training", *["--sizes", "small", "--concepts", "2", "--shifts", "1", "--anchors", "1"]),
        ("gates", *["--sizes", "small", "--concepts", "2"]),
        ("sampling", *PICO, *["--gates", "2", "--steps", "1", "--rounds", "1"]),
        ("passes", *PICO, *["--gates", "2", "--rounds", "1"]),
        ("many", *PICO, *["--concepts", "1", "--things", "2"]),
    ],
    "membranes": [(*PICO, *["--counts", "1", "2", "--runs", "1", "--steps", "1", "--batch", "1"])],
    "relearning": [
        (*PICO, *["--methods", "uce", "--steps", "0", "1", "--each", "1", "--output"], "{folder}")
    ],
    "restoring": [
        (*PICO, *["--method", "uce", "--styles", "1", "--output"], "{folder}/restoring.json")
    ],
    "sd14_edit": [(*PICO, "--runs", "1")],
    "separable": [tuple(["--sizes", "small", "--concepts", "2", "--runs", "1"])],
    "throughput": [
        (*PICO, *["--pictures", "1", "--steps", "1", "--device", "cpu", "--only"], kind)
        for kind in ("loop", "sample", "generate", "evaluate")
    ],
    "trained": [
        ("steps", *PICO),
        ("ours-memory", *PICO),
        ("theirs-memory", *PICO),
        ("esd", *PICO, *["--things", "1", "--limit", "0"]),
    ],
    "trce_steering": [tuple(["--words", "1", "--iterations", "1"])],
}
LINUX = ("closed_form",)
"""Those that ask its C library how much memory work needs."""


def test_every_script_is_run() -> None:
    scripts = {path.stem for path in FOLDER.glob("*.py") if '"__main__"' in path.read_text("utf-8")}
    assert scripts == set(RUNS)


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        pytest.param(name, run, id=" ".join((name, *run[:1])))
        for name, runs in RUNS.items()
        for run in runs
    ],
)
def test_a_benchmark_runs(
    script: str,
    arguments: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if script in LINUX and sys.platform != "linux":
        pytest.skip("measures memory as Linux counts it")
    path, threads = FOLDER / f"{script}.py", torch.get_num_threads()
    given = [argument.format(folder=tmp_path) for argument in arguments]
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(sys, "argv", [str(path), *given])
    try:
        runpy.run_path(str(path), run_name="__main__")
    finally:
        torch.set_num_threads(threads)
    assert capsys.readouterr().out
