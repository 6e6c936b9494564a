"""What the inputs of a campaign are made from: a tiny model, and one good file of each kind."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from expunge import testing
from expunge.cli import main
from expunge.detectors import DETECTORS
from expunge.evaluation.records import Report
from expunge.evaluation.suite import SUITES
from expunge.training import saving
from made_up import SANTA, evaluation

TRAINED = [
    *("--concept", "ghost", "--anchor", "dog", "--method", "esd", "--set", "iterations=3"),
    *("--set", "trajectories=2", "--set", "num_inference_steps=3"),
]
CAPTIONS = [f"a {one} of a {two}" for one in testing.WORDS for two in testing.WORDS]


@dataclass(frozen=True)
class World:
    """Good files, each by what it is."""

    model: Path
    files: dict[str, bytes]

    @classmethod
    def made(cls, folder: Path) -> "World":
        """Make one of each, with the command line where it can."""
        register()
        model, here = folder / "model", folder / "good"
        here.mkdir(parents=True)
        testing.pipeline(folder).save_pretrained(model)
        own = ["--model", str(model), "--output"]
        named = ["--concept", "ghost", "--anchor", "dog"]
        edit, prior = str(here / "edit.safetensors"), str(here / "prior.safetensors")
        (here / "captions.txt").write_text("\n".join(CAPTIONS[:40]))
        _done("erase", *own, edit, *named)
        _done("erase", *own, str(here / "trained.safetensors"), *TRAINED,
              "--checkpoints", str(here / "run"))  # fmt: skip
        _done("prior", *own, prior, "--prompts", str(here / "captions.txt"))
        _done("generate", *own, str(here / "drawn"), "--prompt", "ghost", "--prompt", "dog",
              "--steps", "1", "--edit", edit)  # fmt: skip
        _done("export", edit, "--to", "weights", *own, str(here / "weights.safetensors"))
        _done("export", edit, "--to", "lora", *own, str(here / "lora.safetensors"))
        weights = dict(torch.load(_pickled(here, model), weights_only=True))
        torch.save(weights, here / "weights.pt")
        pictures(here / "pictures")
        _done("train-classifier", str(here / "pictures"), "--backbone", "things", "--output",
              str(here / "classifier.safetensors"))  # fmt: skip
        Report(evaluations=(evaluation(SANTA, here / "report"),)).save(here / "report")
        files = {
            str(path.relative_to(here)): path.read_bytes()
            for path in sorted(here.rglob("*"))
            if path.is_file()
        }
        return cls(model, files)

    def under(self, folder: str) -> dict[str, bytes]:
        """The files of a folder, with the folder's name."""
        return {name: data for name, data in self.files.items() if name.startswith(f"{folder}/")}


def register() -> None:
    """The toy suite and judge, and checkpoints after every step."""
    SUITES.places["toy"] = "toy_suite:SUITE"  # type: ignore[index]
    DETECTORS.places["things"] = "toy_judges:Things"  # type: ignore[index]
    saving.SAVE_EVERY, saving.SAVE_SHARE = 1, 1.0


def pictures(folder: Path, count: int = 4) -> None:
    """Folders of small pictures of two colours."""
    for number, name in enumerate(("blue", "red")):
        (folder / name).mkdir(parents=True)
        for seed in range(count):
            noise = np.random.default_rng(100 * number + seed).integers(0, 90, (16, 16, 3))
            noise[..., 2 - 2 * number] += 150
            Image.fromarray(noise.astype(np.uint8)).save(folder / name / f"{seed}.png")


def _pickled(here: Path, model: Path) -> Path:
    """A state dict of the edited parameters, as torch saves it."""
    from safetensors.torch import load_file

    path = here / "weights.pt"
    torch.save(load_file(here / "weights.safetensors"), path)
    return path


def _done(*arguments: str) -> None:
    assert main(arguments) == 0, arguments


def listing(folder: Path) -> set[str]:
    """Every path below a folder."""
    return {os.path.join(place, name) for place, *names in os.walk(folder) for each in names
            for name in each}  # fmt: skip


def record_of(content: bytes) -> object:
    """The header of a safetensors file, read without the library; ``None`` where it has none."""
    try:
        size = int.from_bytes(content[:8], "little")
        return json.loads(content[8 : 8 + size])
    except (ValueError, RecursionError, MemoryError, OverflowError):
        return None
