"""Every benchmark runs: each script on small random models, with little of everything."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

from expunge import Concept, Edit
from expunge.testing import dense, membrane

FOLDER = Path(__file__).parent.parent / "benchmarks"
RUNS = (
    "attacks ring-a-bell --model pico --population 8 --tokens 4 --generations 2 --sample 2",
    "attacks steps --model pico --runs 1",
    "attacks calls --model pico --edit {folder}/edit --pictures 1 --limit 1 "
    "--only unlearn-diff-atk",
    "closed_form --model pico --runs 1",
    "commands --model pico --runs 1 --cold --only one package",
    "dense make {folder} --model pico",
    "dense use {folder} --model pico",
    "gated training --sizes small --concepts 2 --shifts 1 --anchors 1",
    "gated gates --sizes small --concepts 2",
    "gated sampling --model pico --gates 2 --steps 1 --rounds 1",
    "gated passes --model pico --gates 2 --rounds 1",
    "gated many --model pico --concepts 1 --things 2 --iterations 2",
    "membranes --model pico --counts 1 2 --runs 1 --steps 1 --batch 1",
    "red_team --model pico --methods negative-prompt --things ink --attacks closed-form prune "
    "--budget 1 --pictures 1 --transfer --folder {folder}",
    "restoring --model pico --edit {folder}/edit --styles 1 --output {folder}/restoring.json",
    "sd14_edit --model pico --runs 1",
    "separable --sizes small --concepts 2 --runs 1",
    "throughput --model pico --pictures 1 --steps 1 --device cpu --only loop",
    "throughput --model pico --pictures 1 --steps 1 --device cpu --only sample",
    "throughput --model pico --pictures 1 --steps 1 --device cpu --only generate",
    "throughput --model pico --pictures 1 --steps 1 --device cpu --only evaluate",
    "trained steps --model pico --only esd cie",
    "trained ours-memory --model pico",
    "trained theirs-memory --model pico",
    "trained esd --model pico --things 1 --limit 0 --every 1 1 --trajectories 1",
    "trce_steering --words 1 --iterations 1",
    "unnamed --model pico --methods uce --things blob --everyday default --output {folder}",
)


def test_every_script_is_run() -> None:
    scripts = {path.stem for path in FOLDER.glob("*.py") if "__main__" in path.read_text("utf-8")}
    assert scripts == {run.split()[0] for run in RUNS}


def separable() -> Edit:
    """An edit of two things that can be taken out again one by one."""
    from models import model_of

    model = model_of("pico")
    return membrane(model, Concept(target="pizza")) + membrane(model, Concept(target="rocket"))


def every_weight() -> Edit:
    """An edit of every weight, as the benchmark makes it."""
    from models import model_of

    return dense(model_of("pico", latents=32), Concept(target="ghost"))


@pytest.mark.parametrize("run", RUNS)
def test_a_benchmark_runs(
    run: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script, *arguments = run.split()
    if script in ("closed_form", "commands") and sys.platform != "linux":
        pytest.skip("it measures memory as Linux does")
    path, threads = str(FOLDER / f"{script}.py"), torch.get_num_threads()
    monkeypatch.syspath_prepend(FOLDER)
    if script == "restoring" or run.startswith("attacks calls"):
        separable().save(tmp_path / "edit")
    if run.startswith("dense use"):
        every_weight().save(tmp_path / "dense.safetensors")
    monkeypatch.setattr(sys, "argv", [path, *(one.format(folder=tmp_path) for one in arguments)])
    try:
        runpy.run_path(path, run_name="__main__")
    finally:
        torch.set_num_threads(threads)
    assert capsys.readouterr().out
