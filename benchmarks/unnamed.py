"""What an edit costs when nothing to keep is named: with everyday prompts kept, and without any.

Closed forms keep them as a prior, trainings as prompts of their batches. Six things are erased one
at a time. Weights and numbers were chosen on the first three; the other three were measured only
for the table.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from expunge import Concept, erase
from expunge.evaluation.bench.presets import PRESET
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
CLOSED = ("uce", "rece", "trce", "mace")
TRAINED = ("esd", "ac", "cie", "fmn", "trce-steering", "cpe", "spm", "sepce")
EVERYDAY = ("none", "default")
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


def values(method: str, everyday: str) -> dict[str, Any]:
    """A method's settings: its defaults in closed form, trained its preset for the model."""
    if method in CLOSED:
        return {"prior": everyday, **({"rank": 0} if method == "mace" else {})}
    return {"preset": PRESET, **({"everyday": 0} if everyday == "none" else {})}


def row(
    model: Model, method: str, everyday: str, concept: Concept, options: argparse.Namespace
) -> list[Evaluation]:
    """One edit, measured."""
    given = dict(pair.split("=", 1) for pair in options.set)
    edit = erase(model, concept, method, **{**values(method, everyday), **given})
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
    parser.add_argument("--methods", nargs="+", choices=CLOSED + TRAINED, default=list(CLOSED))
    parser.add_argument("--things", nargs="+", default=[one.target for one in THINGS])
    parser.add_argument("--everyday", nargs="+", choices=EVERYDAY, default=list(EVERYDAY))
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings")
    parser.add_argument("--size", default="brief")
    parser.add_argument("--seeds", type=int, default=1, help="of the pictures")
    parser.add_argument("--output", type=Path, default=Path("runs/unnamed"))
    options = parser.parse_args()
    model = model_of(options.model)
    print(" | ".join(("| method | everyday prompts | erased", *COLUMNS)) + " |")
    print("|---" * (3 + len(COLUMNS)) + "|")
    for method in options.methods:
        for everyday in options.everyday:
            everything: list[Evaluation] = []
            for concept in (one for one in THINGS if one.target in options.things):
                found = row(model, method, everyday, concept, options)
                print(line(f"{method} | {everyday} | {concept.target}", found), flush=True)
                everything += found
            print(line(f"{method} | {everyday} | all", everything), flush=True)


if __name__ == "__main__":
    main()
