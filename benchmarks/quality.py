"""What each method erases from the bundled model, and what it costs.

    python benchmarks/quality.py [--only METHOD ...] [--tasks TASK ...] [--output runs/quality]

Erases a character, an object, a style, and five things at once with each method, in the settings
of ``expunge.models.emoji.presets``, measures them with the emoji suite, and prints a table with
counts and 95 % intervals. Each edit is made in a process of its own, whose time (after loading the
model) and memory are reported. Stopped, it continues with the same command.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from expunge import Concept, Edit, Model, erase, load
from expunge.evaluation.evaluate import evaluate
from expunge.evaluation.records import Evaluation, Measurement
from expunge.evaluation.scoring import DRAWN, FEATURES, right_of
from expunge.metrics.rates import Estimate, Rate
from expunge.models.emoji import presets

SANTA = Concept(target="santa claus", synonyms=("santa",), kind="character", anchor="robot")
PIZZA = Concept(target="pizza", anchor="cookie")
TASKS = {
    "character": (SANTA,),
    "object": (PIZZA,),
    "style": (Concept(target="ink", kind="style", anchor="noto"),),
    "five": (
        SANTA,
        PIZZA,
        Concept(target="dog face", anchor="cat face"),
        Concept(target="rocket", anchor="sailboat"),
        Concept(target="bomb", anchor="balloon"),
    ),
}
CLOSED = ("uce", "rece", "mace", "trce")
TRAINED = ("esd", "ac", "cie", "fmn", "trce-steering")
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


def made(model: Model, method: str, task: str, folder: Path) -> tuple[Edit, dict[str, float]]:
    """The edit, with the seconds and bytes that it took; from the folder if it is there."""
    path = folder / f"{method}-{task}-{model.fingerprint()[:8]}.safetensors"
    costs = path.with_suffix(".json")
    if not costs.exists():
        command = [sys.executable, __file__, "--make", method, task, str(path)]
        subprocess.run(command, check=True)
    return Edit.load(path), json.loads(costs.read_text())


def make(method: str, task: str, path: Path) -> None:
    """Make one edit, and write it with its costs."""
    model = load("emoji")
    before, start = _peak(), time.perf_counter()
    concepts = TASKS[task]
    values = presets.settings(method, concepts[0])
    edit = erase(model, presets.policy(*concepts), method, **values)
    seconds = time.perf_counter() - start
    edit.save(path)
    costs = {"seconds": seconds, "peak": _peak(), "loaded": before}
    path.with_suffix(".json").write_text(json.dumps(costs))


def _peak() -> int:
    """Bytes that this process held at most."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def row(evaluations: Sequence[Evaluation], column: str) -> str:
    """``base → edited of n (interval)`` of all concepts together."""
    groups, metric = COLUMNS[column]
    if groups == KEPT:  # the same pictures for every concept, to be counted once
        evaluations = evaluations[:1]
    found = [one for e in evaluations for one in e.measurements]
    found = [one for one in found if one.group in groups and one.metric == metric]
    if not found:
        return "-"
    before = _together([one.base for one in found])
    after = _together([one.edited for one in found])
    low, high = (100 * bound for bound in after.interval)
    return f"{before.successes} → {after.successes} of {after.n} ({low:.0f}–{high:.0f} %)"


def _together(rates: Sequence[object]) -> Rate:
    known = [rate for rate in rates if isinstance(rate, Rate)]
    return Rate(sum(rate.successes for rate in known), sum(rate.n for rate in known))


def drift(evaluation: Evaluation) -> str:
    """How far kept pictures moved: the mean of 1 - cosine of the judge's features."""
    one: Measurement = next(m for m in evaluation.measurements if m.metric == FEATURES)
    if not isinstance(one.edited, Estimate):
        return "-"
    low, high = one.edited.interval
    return f"{one.edited.value:.3f} ({low:.3f}–{high:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/quality"))
    parser.add_argument("--only", nargs="+", default=CLOSED, choices=CLOSED + TRAINED)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--make", nargs=3, metavar=("METHOD", "TASK", "FILE"))
    options = parser.parse_args()
    if options.make:
        make(*options.make[:2], Path(options.make[2]))
        return
    model = load("emoji")
    (options.output / "edits").mkdir(parents=True, exist_ok=True)
    print(f"{torch.get_num_threads()} threads")
    heads = ["task", "method", *COLUMNS, "drift", "time", "memory", "edit"]
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for task in options.tasks:
        for method in options.only:
            edit, costs = made(model, method, task, options.output / "edits")
            report = evaluate(model, edit, folder=options.output)
            cells = [row(report.evaluations, column) for column in COLUMNS]
            memory = f"{(costs['peak'] - costs['loaded']) / 1e6:.0f} MB"
            cells += [drift(report.evaluations[0]), f"{costs['seconds']:.0f} s", memory]
            print(f"| {task} | {method} | {' | '.join(cells)} | {edit.size / 1e6:.1f} MB |")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
