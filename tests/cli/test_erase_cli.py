"""``expunge erase`` around a training: several processes, early stop, trackers."""

import json
import subprocess
import sys
from pathlib import Path

import accelerate.tracking
import pytest
import torch

from expunge.cli import main
from expunge.detectors import DETECTORS, Identity
from expunge.edits.edit import Edit
from expunge.training import checkpoint


class Twice:
    """A classifier that finds a ghost whenever it looks, twice; then it finds something else."""

    identity = Identity(name="twice", version="", sha256="")
    labels = ("ghost", "something else")
    looks = 0

    def __init__(self, weights: str) -> None:
        pass

    def probabilities(self, pictures: list[object]) -> torch.Tensor:
        Twice.looks += 1
        return torch.eye(2)[[0 if Twice.looks < 3 else 1] * len(pictures)]


SHORT = ["--set", "trajectories=2", "--set", "num_inference_steps=4"]


def arguments(model: Path, output: Path, *options: str, method: str = "esd") -> list[str]:
    named = ["--concept", "ghost", "--anchor", "dog", "--method", method]
    return ["erase", "--model", str(model), "--output", str(output), *named, *options]


def test_of_two_processes_one_speaks(pico_folder: Path, tmp_path: Path) -> None:
    edit = tmp_path / "ghost.safetensors"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes"]
    launch += ["2", f"--main_process_port={29500 + int(torch.randint(1000, ()))}", "-m", "expunge"]
    settings = [*SHORT, "--set", "iterations=3", "--set", "accumulation=2"]
    command = [*launch, *arguments(pico_folder, edit, *settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.replace("\n", "").count("ghost (esd)") == 1
    assert Edit.load(edit).provenance[0].steps == 3


@pytest.mark.parametrize("rank", ["0", "1"])
def test_the_first_process_alone_writes(
    rank: str,
    pico_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RANK", rank)
    edit = tmp_path / "ghost.safetensors"
    assert main(arguments(pico_folder, edit, method="uce")) == 0
    assert edit.exists() == (rank == "0")
    assert bool(capsys.readouterr().err) == (rank == "0")


def test_a_training_ends_when_the_shares_say_so(
    pico_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(DETECTORS.places, "toy", f"{__name__}:Twice")
    monkeypatch.setattr(Twice, "looks", 0)
    edit, run = tmp_path / "ghost.safetensors", tmp_path / "run"
    stop = [
        "--stop-when",
        "erased<=0.05",
        "--look-every",
        "2",
        "--checkpoints",
        str(run),
        "--judge",
        "toy",
    ]
    assert main(arguments(pico_folder, edit, *SHORT, *stop)) == 0
    assert Twice.looks == 3  # at the base, after two steps, after four
    assert Edit.load(edit).provenance[0].steps == 4
    assert "ended after 4 of 200 steps" in capsys.readouterr().err.replace("\n", " ")
    log = [json.loads(line) for line in (run / checkpoint.LOG).read_text().splitlines()]
    assert [one.get("erased") for one in log] == [None, 1.0, None, 0.0]


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (
            "esd",
            ["--stop-when", "erased=0"],
            "'erased=0' is no comparison; write e.g. erased<=0.05",
        ),
        ("esd", ["--stop-when", "gone>0.9"], "no score 'gone'; there are erased, kept"),
        ("esd", ["--stop-when", "kept>0.9"], "name words to keep"),
        ("esd", ["--stop-when", "erased<=0", "--look-every", "0"], "looks 0 steps apart"),
        ("esd", ["--stop-when", "erased<=0", "--judge", "clop:x"], "did you mean clip"),
        ("esd", ["--stop-when", "erased<=0", "--judge", "clip"], "which CLIP?"),
        ("esd", ["--stop-when", "erased<=0", "--judge", "alexnet:x"], "no such file"),
        ("esd", ["--judge", "emoji"], "only with --stop-when"),
        ("esd", ["--look-every", "5"], "only with --stop-when"),
        ("esd", ["--tracker", "tensorbord"], "accelerate knows aim"),
        ("esd", ["--tracker", "tensorboard"], "isn't installed; pip install tensorboard"),
        ("uce", ["--stop-when", "erased<=0"], "uce can't be resumed, watched or tracked"),
        ("uce", ["--tracker", "tensorboard"], "uce can't be resumed, watched or tracked"),
    ],
)
def test_mistakes_are_found_before_a_model_is_loaded(
    method: str,
    options: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", [])
    output = tmp_path / "x.safetensors"
    assert main(arguments(Path("no/such/model"), output, *options, method=method)) == 2
    assert message in capsys.readouterr().err


def test_a_tracker_that_writes_files_needs_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trackers = [accelerate.tracking.LoggerType.TENSORBOARD]
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", trackers)
    output = tmp_path / "x.safetensors"
    assert main(arguments(Path("no/such/model"), output, "--tracker", "tensorboard")) == 2
    assert "name a folder for checkpoints" in capsys.readouterr().err


def test_what_the_judge_never_finds_ends_nothing(
    pico_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(DETECTORS.places, "toy", f"{__name__}:Twice")
    monkeypatch.setattr(Twice, "looks", 2)
    output = tmp_path / "x.safetensors"
    stop = ["--stop-when", "erased<=0.05", "--judge", "toy"]
    assert main(arguments(pico_folder, output, *SHORT, *stop)) == 2
    assert "would end the training at once (erased 0.00)" in capsys.readouterr().err
    assert not output.exists()
