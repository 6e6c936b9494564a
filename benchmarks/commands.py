"""Whole commands, from the shell's call to their end: seconds and peak memory of the process.

    python benchmarks/commands.py [--only one many doctor ...] [--runs 5] [--cold]
                                  [--folder FOLDER] [--model sd14]

The model is a folder of Stable Diffusion 1.4's size, with random weights in float32 safetensors
(4.3 GB) as the published one, and a small tokenizer. Where there is another side, it is a script
that does what released programs of UCE do: load the whole pipeline, encode each prompt by itself
at full length, and solve layer after layer with an explicit inverse (``comparison/released.py``).
Both sides take turns; figures are medians. Each first runs once without being counted. That run
fills the system's cache of files, and ours sums up the default prior, once for a text encoder.

Peak memory is the resident memory of the process, files that are mapped into it among them.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
PYTHON = (sys.executable,)
EXPUNGE = (*PYTHON, "-m", "expunge")


class Used(NamedTuple):
    """What a process took."""

    seconds: float
    memory: int
    """Bytes at most."""


class Work(NamedTuple):
    """A line of the table: what is run on both sides, in a folder of ``comparison/folder.py``."""

    title: str
    ours: Sequence[str]
    theirs: Sequence[str] = ()


def command(arguments: str) -> Sequence[str]:
    return (*EXPUNGE, *arguments.split())


def erasing(title: str, policy: str, *settings: str) -> Work:
    ours = ("erase", "--model", "model", "--policy", f"{policy}.yaml", *settings, "--output")
    theirs = ("-m", "comparison.released", "model", f"{policy}.yaml")
    return Work(
        title,
        (*EXPUNGE, *ours, f"{policy}.safetensors"),
        (*PYTHON, *theirs, f"{policy}-released.safetensors"),
    )


WORKS = {
    "one": erasing("erase one concept", "one"),
    "many": erasing("erase 20 concepts, keep 200 names", "many"),
    "many-2025": erasing("… with UCE of 2025 on both sides", "many", "--set", "variant=2025"),
    "doctor": Work("doctor", command("doctor --model model --policy one.yaml")),
    "export": Work(
        "export an edit as a LoRA",
        command("export one.safetensors --to lora --model model --output lora.safetensors"),
    ),
    "compose": Work(
        "compose two edits",
        command("compose one.safetensors other.safetensors --output both.safetensors"),
    ),
    "import": Work(
        "import a file of keys and values",
        command("import one-released.safetensors --model model --output imported.safetensors"),
    ),
    "help": Work("--help", command("--help")),
    "package": Work("import expunge", (*PYTHON, "-c", "import expunge")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=WORKS, default=list(WORKS), metavar="NAME")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--cold", action="store_true", help="no run that isn't counted")
    parser.add_argument("--folder", type=Path, help="keep the model here for the next time")
    parser.add_argument("--model", choices=("sd14", "pico"), default="sd14")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = (arguments.folder or Path(place) / "inputs").absolute()
        prepare(folder, arguments.model, arguments.only)
        print(f"{'':<36}{'ours':>18}{'theirs':>20}{'time':>10}{'memory':>10}")
        for name in arguments.only:
            work = WORKS[name]
            sides = [work.ours, work.theirs] if work.theirs else [work.ours]
            for each in () if arguments.cold else sides:
                run(each, folder)
            print(line(work.title, in_turns(sides, folder, arguments.runs)), flush=True)


def prepare(folder: Path, model: str, only: Sequence[str]) -> None:
    """Write what the commands read, if it isn't there."""
    if not folder.exists():
        run((*PYTHON, "-m", "comparison.folder", str(folder), model), HERE)
    one, other = WORKS["one"], erasing("", "other")
    needed = {"export": [one.ours], "compose": [one.ours, other.ours], "import": [one.theirs]}
    for each in (each for name in only for each in needed.get(name, ())):
        if not (folder / each[-1]).exists():
            run(each, folder)


def in_turns(sides: Sequence[Sequence[str]], folder: Path, runs: int) -> list[Used]:
    """The medians of each side."""
    rounds = [[run(each, folder) for each in sides] for _ in range(runs)]
    return [typical(side) for side in zip(*rounds, strict=True)]


def typical(found: Sequence[Used]) -> Used:
    middle: Callable[[Sequence[float]], float] = statistics.median
    return Used(middle([one.seconds for one in found]), int(middle([one.memory for one in found])))


def run(command: Sequence[str], folder: Path) -> Used:
    """Run a process to its end.

    Raises:
        SystemExit: it failed.
    """
    settings = {
        **os.environ,
        "EXPUNGE_CACHE": str(folder / "cache"),
        "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    with tempfile.TemporaryFile() as said:
        began = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=folder, env=settings, stdout=subprocess.DEVNULL, stderr=said
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            sys.exit(f"{' '.join(command)}\n{said.read().decode(errors='replace')}")
    return Used(seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))


def line(title: str, sides: Sequence[Used]) -> str:
    columns = [f"{one.seconds:8.2f} s {one.memory / 1e6:6,.0f} MB" for one in sides]
    text = f"{title:<36}" + "".join(f"{column:>20}" for column in columns)
    if len(sides) < 2:
        return text
    ours, theirs = sides
    return f"{text}{theirs.seconds / ours.seconds:8.1f} x{theirs.memory / ours.memory:8.1f} x"


if __name__ == "__main__":
    main()
