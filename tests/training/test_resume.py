"""A training that is killed and started again ends with the same weights."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from expunge import Edit, ExpungeError, Model, erase, load
from expunge.training import checkpoint, loop, saving
from stopping import stopped_in

TRAIN = """
import sys
from expunge import erase, load
from expunge.training import loop, saving
saving.SAVE_EVERY = 3
saving.SAVE_SHARE = 1.0
edit = erase(load(sys.argv[1], device="cpu"), "ghost", "esd", checkpoints=sys.argv[2],
             iterations=40, trajectories=2, num_inference_steps=4)
edit.save(sys.argv[3])
"""


def start(*arguments: str | Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", TRAIN, *map(str, arguments)])


def test_killed_and_resumed_gives_the_same_weights(pico_folder: Path, tmp_path: Path) -> None:
    whole = start(pico_folder, tmp_path / "whole", tmp_path / "whole.safetensors")
    assert whole.wait(120) == 0
    killed = start(pico_folder, tmp_path / "parts", tmp_path / "parts.safetensors")
    deadline = time.monotonic() + 60
    while not (tmp_path / "parts" / checkpoint.FILE).exists():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "parts.safetensors").exists()
    assert start(pico_folder, tmp_path / "parts", tmp_path / "parts.safetensors").wait(120) == 0
    ids = [Edit.load(tmp_path / f"{name}.safetensors").id for name in ("whole", "parts")]
    assert ids[0] == ids[1]


SHORT = {"trajectories": 2, "num_inference_steps": 4}


@pytest.mark.parametrize("variant", [None, "compvis", "diffusers-sd"])
def test_stopping_anywhere_changes_nothing(
    pico: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str | None
) -> None:
    monkeypatch.setattr(saving, "SAVE_EVERY", 1)
    monkeypatch.setattr(saving, "SAVE_SHARE", 1.0)
    settings = {"iterations": 4, "num_inference_steps": 4}
    if variant:
        settings |= {"fidelity": "original", "variant": variant}
    whole = erase(pico, "dog", "esd", **settings)
    with stopped_in(3):
        erase(pico, "dog", "esd", checkpoints=tmp_path, **settings)
    resumed = erase(pico, "dog", "esd", checkpoints=tmp_path, **settings)
    assert resumed.id == whole.id


def test_a_checkpoint_of_other_settings_is_refused(
    pico: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "SAVE_EVERY", 1)
    monkeypatch.setattr(saving, "SAVE_SHARE", 1.0)
    erase(pico, "dog", "esd", checkpoints=tmp_path, iterations=2, **SHORT)
    with pytest.raises(ExpungeError, match="other settings"):
        erase(pico, "dog", "esd", checkpoints=tmp_path, iterations=3, **SHORT)
    with pytest.raises(ExpungeError, match="other settings"):
        erase(pico, "cat", "esd", checkpoints=tmp_path, iterations=2, **SHORT)


def test_half_precision_models_train_with_float32_masters(pico_folder: Path) -> None:
    model = load(pico_folder, dtype=torch.bfloat16, device="cpu")
    edit = erase(model, "dog", "esd", iterations=3, lr=1e-6, **SHORT)
    changes = edit.components[0].payload.tensors().values()
    assert all(change.dtype == torch.float32 for change in changes)
    assert any(0 < float(change.abs().max()) < 1e-5 for change in changes)


def test_a_checkpoint_without_its_log_is_refused(
    pico: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "SAVE_EVERY", 1)
    monkeypatch.setattr(saving, "SAVE_SHARE", 1.0)
    erase(pico, "dog", "esd", checkpoints=tmp_path, iterations=2, **SHORT)
    log = tmp_path / checkpoint.LOG
    lines = log.read_text().splitlines(keepends=True)
    for damaged in (lines[0], lines[0] + "{", ""):
        log.write_text(damaged)
        with pytest.raises(ExpungeError, match="lacks steps"):
            erase(pico, "dog", "esd", checkpoints=tmp_path, iterations=2, **SHORT)
    log.write_text("".join(lines) + lines[0])
    erase(pico, "dog", "esd", checkpoints=tmp_path, iterations=2, **SHORT)
    assert log.read_text() == "".join(lines)


def test_saving_takes_a_small_share_of_the_time(
    pico: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of 1 s beside saving of 2 s: the first, then one in 38, and the last."""
    now, saved = 0.0, []
    real = loop.Trainer.step

    def step(*arguments: object) -> dict[str, float]:
        nonlocal now
        now += 1.0
        return real(*arguments)  # type: ignore[arg-type]

    def save(trainer: loop.Trainer, folder: Path, name: str, steps: int) -> None:
        nonlocal now
        now += 2.0
        saved.append(steps)

    monkeypatch.setattr(saving.time, "monotonic", lambda: now)
    monkeypatch.setattr(loop.Trainer, "step", step)
    monkeypatch.setattr(loop.Trainer, "save", save)
    monkeypatch.setattr(saving, "SAVE_EVERY", 3)
    erase(pico, "dog", "esd", checkpoints=tmp_path, iterations=50, **SHORT)
    assert saved == [3, 41, 50]


def checkpointed(pico: Model, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(saving, "SAVE_EVERY", 1)
    monkeypatch.setattr(saving, "SAVE_SHARE", 1.0)
    erase(pico, "dog", "esd", checkpoints=folder, iterations=2, **SHORT)
    return folder / checkpoint.FILE


def again(model: Model, folder: Path) -> str:
    return erase(model, "dog", "esd", checkpoints=folder, iterations=2, **SHORT).id


def test_a_damaged_checkpoint_is_refused_with_advice(
    pico: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpointed(pico, tmp_path, monkeypatch)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-9] ^= 4
    save_file({"a": torch.zeros(1)}, path)
    others = [path.read_bytes()]
    for header in ("{", "[]", "{}", '{"run": 1, "steps": "x"}'):
        save_file({"a": torch.zeros(1)}, path, metadata={"expunge": header})
        others.append(path.read_bytes())
    for damaged in (b"", b"text", bytes(500), whole[:1000], whole + b"x", bytes(flipped), *others):
        path.write_bytes(damaged)
        with pytest.raises(ExpungeError, match=r"delete .* and begin again|other settings"):
            again(pico, tmp_path)
        assert path.read_bytes() == damaged
    path.write_bytes(whole)
    again(pico, tmp_path)


def test_a_changed_log_is_refused(
    pico: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpointed(pico, tmp_path, monkeypatch)
    log = tmp_path / checkpoint.LOG
    log.write_text(log.read_text().replace("1", "2"))
    with pytest.raises(ExpungeError, match="was changed"):
        again(pico, tmp_path)


def test_damaged_trajectories_are_computed_again(
    pico: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpointed(pico, tmp_path, monkeypatch)
    wanted = again(pico, tmp_path)
    path.unlink()
    caches = [file for file in tmp_path.glob("*.safetensors") if file != path]
    assert caches
    for cache in caches:
        content = bytearray(cache.read_bytes())
        content[-1] ^= 64
        cache.write_bytes(content)
    assert again(pico, tmp_path) == wanted


def test_a_training_goes_on_only_in_the_precision_it_was_begun_in(
    pico: Model, pico_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpointed(pico, tmp_path, monkeypatch)
    before = path.read_bytes()
    half = load(pico_folder, dtype=torch.bfloat16, device="cpu")
    with pytest.raises(ExpungeError, match="precision, device"):
        again(half, tmp_path)
    assert path.read_bytes() == before


def test_a_training_follows_one_on_another_device(pico: Model, tmp_path: Path) -> None:
    from accelerate.state import PartialState

    first = again(pico, tmp_path / "a")
    PartialState._shared_state["device"] = torch.device("cuda", 0)
    assert again(pico, tmp_path / "b") == first
    assert PartialState().device.type == "cpu"
