"""What each closed-form method erases from the bundled model, and what it costs.

    python benchmarks/closed_form_quality.py [--output runs/closed-form] [--only METHOD ...]

Erases a character, an object, a style, and five things at once with each method, in the settings
of ``expunge.models.emoji.presets``, measures them with the emoji suite, and prints a table with
counts and 95 % intervals. Stopped, it continues with the same command.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from expunge import Concept, Edit, Model, erase, load
from expunge.evaluation.evaluate import evaluate
from expunge.evaluation.records import Evaluation
from expunge.evaluation.scoring import DRAWN, right_of
from expunge.metrics.rates import Rate
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
METHODS = ("uce", "rece", "mace", "trce")
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


def edit_of(model: Model, method: str, task: str, folder: Path) -> Edit:
    path = folder / "edits" / f"{method}-{task}-{model.fingerprint()[:8]}.safetensors"
    if path.exists():
        return Edit.load(path)
    concepts = TASKS[task]
    values = presets.settings(method, concepts[0])
    edit = erase(model, presets.policy(*concepts), method, **values)
    edit.save(path)
    return edit


def row(evaluations: Sequence[Evaluation], column: str) -> str:
    """``edited/n`` of all concepts together, the interval, and the base where it isn't perfect."""
    groups, metric = COLUMNS[column]
    if groups == KEPT:  # the same pictures for every concept, to be counted once
        evaluations = evaluations[:1]
    found = [
        measured
        for evaluation in evaluations
        for measured in evaluation.measurements
        if measured.group in groups and measured.metric == metric
    ]
    base, edited = (
        (
            [rate for rate in side if isinstance(rate, Rate)]
            for side in zip(*((m.base, m.edited) for m in found), strict=True)
        )
        if found
        else ([], [])
    )
    if not edited:
        return "-"
    before, after = (
        Rate(sum(rate.successes for rate in side), sum(rate.n for rate in side))
        for side in (base, edited)
    )
    low, high = (100 * bound for bound in after.interval)
    return f"{before.successes} → {after.successes} of {after.n} ({low:.0f}–{high:.0f} %)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/closed-form"))
    parser.add_argument("--only", nargs="+", default=METHODS, choices=METHODS)
    options = parser.parse_args()
    model = load("emoji")
    print("| task | method | " + " | ".join(COLUMNS) + " | edit |")
    print("|---" * (len(COLUMNS) + 3) + "|")
    for task in TASKS:
        for method in options.only:
            edit = edit_of(model, method, task, options.output)
            report = evaluate(model, edit, folder=options.output)
            cells = [row(report.evaluations, column) for column in COLUMNS]
            size = f"{edit.size / 1e6:.1f} MB"
            print(f"| {task} | {method} | {' | '.join(cells)} | {size} |", flush=True)


if __name__ == "__main__":
    main()
