"""What comes back when concepts are taken out of an edit again.

    python benchmarks/restoring.py [--method sepce] [--edit FILE] [--output runs/restoring.json]
                                   [--styles 7] [--model emoji]

Erases five things at once from the bundled model (or takes the edit that is given), takes out every
set of them, draws all of them in all styles each time, and counts how often the judge finds what is
still erased and what was given back. Weights are compared with those of an edit that never had the
others, and, with all given back, with the base, bit for bit.
"""

import argparse
from collections import defaultdict
from itertools import combinations
from pathlib import Path

from expunge import Edit, erase
from expunge.evaluation.bench import Bench, presets
from expunge.evaluation.recognition import recogniser
from expunge.evaluation.restoration import Restored, restoration
from expunge.files import write_json
from expunge.generation import ImageRequest
from expunge.models.emoji import catalog
from expunge.statistics.rates import Rate
from models import model_of

TASK = "five things"


def together(rows: list[Restored]) -> str:
    """Rows with equally many concepts given back, pooled."""
    base = Rate(sum(r.base.successes for r in rows), sum(r.base.n for r in rows))
    back = Rate(sum(r.restored.successes for r in rows), sum(r.restored.n for r in rows))
    equal = Rate(sum(r.same_pictures.successes for r in rows), sum(r.same_pictures.n for r in rows))
    others = [r.still_erased for r in rows if r.still_erased]
    erased = Rate(sum(r.successes for r in others), sum(r.n for r in others)) if others else None
    furthest = max(row.deviation for row in rows)
    return (
        f"| {len(rows[0].concepts)} | {len(rows)} | {erased or '-'} | {base} | {back} | "
        f"{equal.successes} of {equal.n} | {furthest:g} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--method", default="sepce")
    parser.add_argument("--edit", type=Path)
    parser.add_argument("--output", type=Path, default=Path("runs/restoring.json"))
    parser.add_argument("--styles", type=int, help="that each thing is drawn in; all by default")
    parser.add_argument("--model", default="emoji", help="emoji or pico")
    options = parser.parse_args()
    model, bench = model_of(options.model), Bench.load()
    concepts = bench.tasks[TASK].erase.erase
    edit = (
        Edit.load(options.edit)
        if options.edit
        else erase(
            model,
            presets.policy(*concepts),
            options.method,
            **presets.settings(options.method, *concepts),
        )
    )
    targets = [concept.target for concept in edit.concepts]
    asked = {
        target: [
            ImageRequest(
                case_number=f"{target}-{style.name}".replace(" ", "-"),
                prompt=f"{target}, {style.name} style",
                seed=number,
            )
            for number, style in enumerate(catalog().styles[: options.styles])
        ]
        for target in targets
    }
    sets = [s for count in range(1, len(targets) + 1) for s in combinations(targets, count)]
    found = restoration(
        model,
        edit,
        asked,
        recogniser("emoji", [entry.name for entry in catalog().objects]),
        sets=sets,
        sampler=bench.sampler,
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.output, found.model_dump(mode="json"))
    groups: dict[int, list[Restored]] = defaultdict(list)
    for row in found.rows:
        groups[len(row.concepts)].append(row)
    print(
        "| given back | sets | still erased, drawn | given back, base | given back, drawn | "
        "the base's picture, byte for byte | weights off by |\n|---|---|---|---|---|---|---|"
    )
    for rows in groups.values():
        print(together(rows))
    print(f"all given back: the base's weights, bit for bit: {found.rows[-1].base_bits}")


if __name__ == "__main__":
    main()
