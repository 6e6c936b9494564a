"""What an edit costs when nothing to keep is named: with the default prior, and without any.

Six things are erased one at a time. The weight and the number of everyday prompts were chosen on
the first three; the other three were measured only for the table.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from expunge import Concept, erase
from expunge.evaluation.bench.table import pooled
from expunge.evaluation.evaluate import measured, question
from expunge.evaluation.records import Evaluation
from expunge.generation import Sampler
from expunge.models import Model
from models import model_of

THINGS = (
    Concept(target="santa claus", synonyms=("santa",), kind="character", anchor="robot"),
    Concept(target="pizza", anchor="cookie"),
    Concept(target="ink", kind="style", anchor="noto"),
    Concept(target="dog face", anchor="cat face"),
    Concept(target="rocket", anchor="sailboat"),
    Concept(target="blob", kind="style", anchor="flat"),
)
METHODS = ("uce", "rece", "trce", "mace")
PRIORS = ("none", "default")
COLUMNS = {
    "its name": ("explicit", "concept drawn"),
    "other words": ("synonyms", "concept drawn"),
    "neighbours": ("neighbours", "object right"),
    "other objects": ("other objects", "object right"),
    "their style": ("other objects", "style right"),
    "other styles": ("other styles", "style right"),
    "their objects": ("other styles", "object right"),
}
SAMPLER = Sampler(scheduler="dpm++", steps=10, guidance_scale=4.0)


def row(
    model: Model, method: str, prior: str, concept: Concept, options: argparse.Namespace
) -> list[Evaluation]:
    """One edit, measured."""
    values = {"rank": 0} if method == "mace" else {}
    edit = erase(model, concept, method, prior=prior, **values)
    seeds = range(options.seeds)
    asked = question("emoji", edit.concepts, size=options.size, seeds=seeds, sampler=SAMPLER)
    return list(measured(asked, model, options.output, edit=edit))


def line(label: str, found: Sequence[Evaluation]) -> str:
    """A line of the table: base -> edited pictures, and the interval of the edited share."""
    cells = []
    for place in COLUMNS.values():
        ones = [m for one in found for m in one.measurements if (m.group, m.metric) == place]
        before, after = pooled(m.base for m in ones), pooled(m.edited for m in ones)
        if before is None or after is None:
            cells.append("-")
            continue
        low, high = (100 * share for share in after.interval)
        cells.append(
            f"{before.successes} → {after.successes} of {after.n} ({low:.0f}–{high:.0f} %)"
        )
    return " | ".join((f"| {label}", *cells)) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="emoji", help="emoji, or pico")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--things", nargs="+", default=[one.target for one in THINGS])
    parser.add_argument("--priors", nargs="+", choices=PRIORS, default=list(PRIORS))
    parser.add_argument("--size", default="brief")
    parser.add_argument("--seeds", type=int, default=1, help="of the pictures")
    parser.add_argument("--output", type=Path, default=Path("runs/unnamed"))
    options = parser.parse_args()
    model = model_of(options.model)
    print(" | ".join(("| method | prior | erased", *COLUMNS)) + " |")
    print("|---" * (3 + len(COLUMNS)) + "|")
    for method in options.methods:
        for prior in options.priors:
            everything: list[Evaluation] = []
            for concept in (one for one in THINGS if one.target in options.things):
                found = row(model, method, prior, concept, options)
                print(line(f"{method} | {prior} | {concept.target}", found), flush=True)
                everything += found
            print(line(f"{method} | {prior} | all", everything), flush=True)


if __name__ == "__main__":
    main()
