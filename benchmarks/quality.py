"""What each method erases from the bundled model, and what it costs.

    python benchmarks/quality.py [--only METHOD ...] [--tasks TASK ...] [--output runs/quality]
                                 [--plot comparison.svg]

Erases a character, an object, a style, five things and twenty at once with each method, in the
settings of ``expunge.models.emoji.presets``, measures them with the emoji suite, and prints a table
with counts and 95 % intervals. Each edit is made in a process of its own, whose time (after loading
the model) and memory are reported. Stopped, it continues with the same command. ``--plot`` draws
what is left of the erased beside what is right of everything else (it needs matplotlib).
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from expunge import Concept, Edit, Model, erase, load
from expunge.evaluation.evaluate import evaluate
from expunge.evaluation.records import Evaluation, Measurement
from expunge.evaluation.scoring import DRAWN, FEATURES, right_of
from expunge.methods import configured
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
    "twenty": (
        SANTA,
        *(
            Concept(target=words, kind="character", anchor=anchor)
            for words, anchor in {
                "mrs claus": "sunflower",
                "snowman": "cactus",
                "alien": "octopus",
                "alien monster": "crab",
                "ghost": "balloon",
                "clown face": "soccer ball",
                "jack o lantern": "red apple",
                "dragon face": "turtle",
                "ogre": "strawberry",
                "goblin": "carrot",
                "unicorn": "horse face",
                "panda": "penguin",
                "skull": "light bulb",
                "wolf": "dog face",
                "tiger face": "cat face",
                "shark": "spouting whale",
            }.items()
        ),
        *(
            Concept(target=style, kind="style", anchor="noto")
            for style in ("ink", "blob", "emojione")
        ),
    ),
}
CLOSED = ("uce", "rece", "mace", "trce")
TRAINED = ("esd", "ac", "cie", "fmn", "trce-steering")
GATED = ("cpe", "spm", "sepce")
METHODS = CLOSED + TRAINED + GATED
TURNS = ("spm", "sepce")
"""Methods whose steps are for one concept each."""
MOST_STEPS = 1000
"""Of such a method, for all concepts together."""
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


def settings(method: str, task: str) -> dict[str, object]:
    """The preset; where concepts take turns, with as many steps for each of several."""
    concepts = TASKS[task]
    values = presets.settings(method, concepts[0])
    if method in TURNS:
        steps = configured(method, **values).iterations
        values["iterations"] = min(steps * len(concepts), MOST_STEPS)
    return values


def make(method: str, task: str, path: Path) -> None:
    """Make one edit, and write it with its costs."""
    model = load("emoji")
    before, start = _peak(), time.perf_counter()
    edit = erase(model, presets.policy(*TASKS[task]), method, **settings(method, task))
    seconds = time.perf_counter() - start
    edit.save(path)
    costs = {"seconds": seconds, "peak": _peak(), "loaded": before}
    path.with_suffix(".json").write_text(json.dumps(costs))


def _peak() -> int:
    """Bytes that this process held at most."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Row(NamedTuple):
    """What one method did in one task."""

    task: str
    method: str
    before: dict[str, Rate | None]
    """Of the base model, by column; ``None`` where nothing was asked for."""
    after: dict[str, Rate | None]
    drift: Estimate
    seconds: float
    memory: float
    """Bytes beyond the loaded model."""
    size: float
    """Bytes of the edit."""

    def cells(self) -> list[str]:
        low, high = self.drift.interval
        return [
            self.task,
            self.method,
            *(self._counts(column) for column in COLUMNS),
            f"{self.drift.value:.4f} ({low:.4f}–{high:.4f})",
            f"{self.seconds:.0f} s",
            f"{self.memory / 1e6:.0f} MB",
            f"{self.size / 1e6:.1f} MB",
        ]

    def _counts(self, column: str) -> str:
        """``base → edited of n (interval)``."""
        before, after = self.before[column], self.after[column]
        if before is None or after is None:
            return "-"
        low, high = (100 * bound for bound in after.interval)
        return f"{before.successes} → {after.successes} of {after.n} ({low:.0f}–{high:.0f} %)"


def measured(model: Model, method: str, task: str, folder: Path) -> Row:
    edit, costs = made(model, method, task, folder / "edits")
    evaluations = evaluate(model, edit, folder=folder).evaluations
    found = {column: _measurements(evaluations, column) for column in COLUMNS}
    return Row(
        task,
        method,
        {column: _together([one.base for one in known]) for column, known in found.items()},
        {column: _together([one.edited for one in known]) for column, known in found.items()},
        drift(evaluations[0]),
        costs["seconds"],
        costs["peak"] - costs["loaded"],
        edit.size,
    )


def _measurements(evaluations: Sequence[Evaluation], column: str) -> list[Measurement]:
    """Those of all concepts together."""
    groups, metric = COLUMNS[column]
    if groups == KEPT:  # the same pictures for every concept, to be counted once
        evaluations = evaluations[:1]
    found = [one for e in evaluations for one in e.measurements]
    return [one for one in found if one.group in groups and one.metric == metric]


def _together(rates: Sequence[object]) -> Rate | None:
    known = [rate for rate in rates if isinstance(rate, Rate)]
    if not known:
        return None
    return Rate(sum(rate.successes for rate in known), sum(rate.n for rate in known))


def drift(evaluation: Evaluation) -> Estimate:
    """How far kept pictures moved: the mean of 1 - cosine of the judge's features."""
    one: Measurement = next(m for m in evaluation.measurements if m.metric == FEATURES)
    assert isinstance(one.edited, Estimate)
    return one.edited


def plot(rows: Sequence[Row], path: Path) -> None:
    """What is left of the erased beside what is right of the rest: a panel a task, a line a method.

    Many methods share a point, so one axis for each would hide most of them.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tasks: dict[str, list[Row]] = defaultdict(list)
    for one in rows:
        tasks[one.task].append(one)
    methods = [name for name in METHODS if any(one.method == name for one in rows)]
    figure, panels = pyplot.subplots(
        1,
        len(tasks),
        figsize=(2.2 * len(tasks) + 0.8, 0.28 * len(methods) + 1.3),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for panel, (task, found) in zip(panels[0], tasks.items(), strict=True):
        for one in found:
            line = methods.index(one.method)
            kept = _together([one.after[column] for column in ("other objects", "other styles")])
            for rate, colour in ((one.after["its name"], "tab:red"), (kept, "tab:blue")):
                assert rate
                panel.errorbar(
                    100 * rate.value, line, xerr=_whiskers(rate), fmt="o", color=colour, ms=5
                )
        panel.set_title(task, fontsize=10)
        panel.set_xlabel("% of pictures", fontsize=8)
        panel.tick_params(labelsize=8)
        panel.grid(alpha=0.3)
    panels[0][0].set(yticks=range(len(methods)), yticklabels=methods, xlim=(-4, 104))
    panels[0][0].invert_yaxis()
    handles = [
        pyplot.Line2D([], [], marker="o", ls="", color=colour, label=label)
        for label, colour in (
            ("erased, and still drawn when named", "tab:red"),
            ("everything else, still right", "tab:blue"),
        )
    ]
    figure.legend(handles=handles, loc="lower center", ncols=2, fontsize=9, frameon=False)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(path)


def _whiskers(rate: Rate) -> list[list[float]]:
    low, high = rate.interval
    return [[100 * (rate.value - low)], [100 * (high - rate.value)]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/quality"))
    parser.add_argument("--only", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--plot", type=Path)
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
    rows = []
    for task in options.tasks:
        for method in options.only:
            rows.append(measured(model, method, task, options.output))
            print(f"| {' | '.join(rows[-1].cells())} |", flush=True)
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
