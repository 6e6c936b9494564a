"""Commands that are killed at random moments, run again, and compared with an uninterrupted run.

Commands run in forks of this process, in which everything is imported already and nothing has been
computed, so that most kills come while a command works.
"""

import csv
import os
import random
import re
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from campaigns.world import CAPTIONS, pictures, register

Command = Callable[[Path], list[str]]
COSTS = {"seconds", "core seconds", "memory bytes"}
TIMES = re.compile(rb"[\d.]+ (?=s\b|MB\b)")


@dataclass
class Tally:
    """How often what was killed, and what was lost."""

    kills: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        each = ", ".join(f"{count} of {name}" for name, count in self.kills.items())
        return f"{sum(self.kills.values())} kills ({each}): {len(self.faults)} lost or differing"


def commands(model: Path) -> Mapping[str, tuple[str, ...]]:
    """A command of each kind that works for a while; ``in/`` has what it reads."""
    own = ("--model", str(model))
    esd = ("--concept", "ghost", "--anchor", "dog", "--method", "esd", "--set", "iterations=40",
           "--set", "trajectories=4", "--set", "num_inference_steps=6")  # fmt: skip
    toy = ("--suite", "toy", "--steps", "8", *(f"--seed={n}" for n in range(12)))
    return {
        "generate": ("generate", *own, "--prompts", "in/p.csv", "--steps", "8", "--output", "out"),
        "evaluate": ("evaluate", *own, "--edit", "in/edit.safetensors", *toy, "--output", "out"),
        "audit": ("audit", str(model), "--edit", "in/edit.safetensors", "--concept", "ghost", *toy,
                  "--output", "out"),
        "erase": ("erase", *own, *esd, "--checkpoints", "out/run", "--output", "out/e.safetensors"),
        "prior": ("prior", *own, "--prompts", "in/c.txt", "--output", "out/prior.safetensors"),
        "train-classifier": ("train-classifier", "in/pictures", "--backbone", "things", "--output",
                             "out/c.safetensors"),
        "bench": ("bench", "--plan", "in/plan.yaml", "--output", "out"),
    }  # fmt: skip


def campaign(count: int, start: int, root: Path) -> Tally:
    """Kill commands ``count`` times; each ends in a run that isn't killed."""
    os.environ["OMP_NUM_THREADS"] = "1"
    draws, tally = random.Random(start), Tally()
    inputs, model = root / "in", root / "model"
    root.mkdir(parents=True)
    _finished(_fork(lambda: _prepare(inputs, model), root, "prepared"))
    _import()
    wanted: dict[str, tuple[dict[str, bytes], float]] = {}
    while sum(tally.kills.values()) < count:
        for name, arguments in commands(model).items():
            if name not in wanted:
                began = time.monotonic()
                whole = _place(root / "whole" / name, inputs)
                _finished(_start(arguments, whole))
                wanted[name] = _contents(whole), time.monotonic() - began
            place = _place(root / "killed", inputs)
            killed = _killed(arguments, place, wanted[name][1], draws)
            tally.kills[name] = tally.kills.get(name, 0) + killed
            code = _finished(_start(arguments, place), check=False)
            if code:
                told = (place / "printed").read_text()[-600:]
                tally.faults.append(f"{name}: ended with {code} after a kill: {told}")
            found = _contents(place)
            for file in sorted(wanted[name][0].keys() | found.keys()):
                if wanted[name][0].get(file) != found.get(file):
                    tally.faults.append(f"{name}: {file} differs after {killed} kills")
            if sum(tally.kills.values()) >= count:
                break
    return tally


def _killed(arguments: tuple[str, ...], place: Path, takes: float, draws: random.Random) -> int:
    """Kill a command up to three times; how often it didn't end before that."""
    killed = 0
    for _ in range(draws.randint(1, 3)):
        child = _start(arguments, place)
        time.sleep(draws.uniform(0.05, 0.9) * takes)
        if os.waitpid(child, os.WNOHANG) == (0, 0):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            killed += 1
        else:
            break
    return killed


def _place(folder: Path, inputs: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(inputs, folder / "in")
    return folder


def _start(arguments: tuple[str, ...], place: Path) -> int:
    def run() -> int:
        from expunge.cli import main

        return main(arguments)

    return _fork(run, place, "printed")


def _fork(run: Callable[[], int], place: Path, log: str) -> int:
    """Run something in a child, in a folder; its process id."""
    child = os.fork()
    if child:
        return child
    code = 98
    try:
        os.chdir(place)
        printed = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(printed, 1)
        os.dup2(printed, 2)
        code = run()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _finished(child: int, *, check: bool = True) -> int:
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert not (check and code), f"an uninterrupted run ended with {code}"
    return code


def _contents(place: Path) -> dict[str, bytes]:
    """All that a command has written, without what it says of its own speed and of the date."""
    return {
        str(path.relative_to(place / "out")): _timeless(path)
        for path in sorted((place / "out").rglob("*"))
        if path.is_file()
    }


def _timeless(path: Path) -> bytes:
    content = path.read_bytes()
    if path.name == "certificate.json":
        return re.sub(rb'"date": "[^"]*"', b"", content)
    if path.parent.name == "cells":
        return re.sub(rb'"(core_seconds|seconds|memory)": [\d.e+-]+', b"", content)
    if path.name == "table.csv":
        table = csv.DictReader(content.decode().splitlines())
        return repr([[row[key] for key in row if key not in COSTS] for row in table]).encode()
    return TIMES.sub(b"", content) if path.name.startswith("bench.") else content


def _import() -> None:
    """Import what commands import; compute nothing."""
    import accelerate  # noqa: F401
    import diffusers  # noqa: F401
    import scipy.stats  # noqa: F401
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel  # noqa: F401

    import expunge.training.loop  # noqa: F401
    from expunge import prior
    from expunge.methods import METHODS

    register()
    prior.BATCH, prior.SAVE_EVERY = 8, 0.02
    for name in ("uce", "esd"):
        METHODS.get(name)


def _prepare(inputs: Path, model: Path) -> int:
    """Make what the commands read."""
    from expunge import testing
    from expunge.cli import main

    inputs.mkdir()
    testing.pipeline(inputs.parent).save_pretrained(model)
    rows = "".join(f"{number},a dog,{number}\n" for number in range(60))
    (inputs / "p.csv").write_text("case_number,prompt,evaluation_seed\n" + rows)
    (inputs / "c.txt").write_text("\n".join(CAPTIONS * 4))
    (inputs / "plan.yaml").write_text(
        "{suite: emoji, size: brief, seeds: [0], sampler: {steps: 1}, methods: [uce], "
        "tasks: {pizza: {erase: [{target: pizza, anchor: cookie}]}}}"
    )
    pictures(inputs / "pictures", 60)
    output = str(inputs / "edit.safetensors")
    named = ["--concept", "ghost", "--anchor", "dog"]
    return main(["erase", "--model", str(model), "--output", output, *named])
