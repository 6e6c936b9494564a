"""What comes back when concepts are taken out of an edit again.

    python benchmarks/restoring.py [--method sepce] [--edit FILE] [--output restoring.json]

Erases five things at once from the bundled model (or takes the edit that is given), draws all five
in all styles with each of the 32 subsets of the edit's parts, and counts how often the judge finds
what is erased and what was given back. With all parts taken out, every weight is compared with the
base, bit for bit.
"""

import argparse
import json
from itertools import combinations
from pathlib import Path

import torch

from expunge import Edit, Model, erase, load
from expunge.generation import ImageRequest, Sampler
from expunge.generation.sampling import sample
from expunge.metrics.rates import Rate
from expunge.models.emoji import catalog, presets
from expunge.models.emoji.judges import load_judges
from quality import TASKS, settings

CONCEPTS = TASKS["five"]


def found(model: Model) -> dict[str, list[bool]]:
    """Whether each concept was recognised in its pictures."""
    judges = load_judges()
    styles = [style.name for style in catalog().styles]
    asked = [(one.target, f"{one.target}, {style} style") for one in CONCEPTS for style in styles]
    requests = [
        ImageRequest(case_number=str(number), prompt=prompt, seed=number)
        for number, (_, prompt) in enumerate(asked)
    ]
    drawn = torch.stack([picture for _, picture in sample(model, requests, Sampler())])
    seen = judges.classify(drawn.permute(0, 3, 1, 2)).objects.tolist()
    names = [judges.objects[index] if index >= 0 else "" for index in seen]
    outcomes: dict[str, list[bool]] = {one.target: [] for one in CONCEPTS}
    for (target, _), name in zip(asked, names, strict=True):
        outcomes[target].append(name == target)
    return outcomes


def line(label: str, rate: Rate | None) -> str:
    if rate is None:
        return f"{label} -"
    low, high = (100 * bound for bound in rate.interval)
    return f"{label} {rate.successes} of {rate.n} ({low:.0f}–{high:.0f} %)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--method", default="sepce")
    parser.add_argument("--edit", type=Path)
    parser.add_argument("--output", type=Path, default=Path("restoring.json"))
    options = parser.parse_args()
    model = load("emoji")
    before = {name: weight.clone() for name, weight in model.unet.named_parameters()}
    policy = presets.policy(*CONCEPTS)
    edit = (
        Edit.load(options.edit)
        if options.edit
        else erase(model, policy, options.method, **settings(options.method, "five"))
    )
    targets = [one.target for one in CONCEPTS]
    done = json.loads(options.output.read_text()) if options.output.exists() else {}
    for count in range(len(targets), -1, -1):
        for subset in combinations(targets, count):
            key = f"{edit.id}: {', '.join(subset) or 'nothing'}"
            if key not in done:
                if subset:
                    with edit.only(*subset).applied(model):
                        done[key] = found(model)
                else:
                    done[key] = found(model)
                options.output.write_text(json.dumps(done))
        keys = [f"{edit.id}: {', '.join(s) or 'nothing'}" for s in combinations(targets, count)]
        subsets = list(combinations(targets, count))
        erased = [
            seen for key, s in zip(keys, subsets, strict=True) for t in s for seen in done[key][t]
        ]
        restored = [
            seen
            for key, s in zip(keys, subsets, strict=True)
            for t in targets
            if t not in s
            for seen in done[key][t]
        ]
        print(
            f"{count} erased, {len(targets) - count} given back, {len(subsets)} subsets: "
            + line("erased still drawn", Rate.of(erased) if erased else None)
            + ", "
            + line("given back and drawn", Rate.of(restored) if restored else None),
            flush=True,
        )
    edit.apply(model)
    for target in targets:
        edit.only(target).revert(model)
    same = all(torch.equal(weight, before[name]) for name, weight in model.unet.named_parameters())
    print(f"all given back one by one: the base, bit for bit: {same}")


if __name__ == "__main__":
    main()
