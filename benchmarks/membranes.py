"""What SPM's membranes cost when pictures are drawn.

    python benchmarks/membranes.py [--counts 1 5 20] [--runs 9] [--steps 10] [--batch 4]

The model draws the same prompts without an edit and with 1, 5 and 20 membranes (of random factors,
on which time doesn't depend), in turn. What is printed are medians of the runs, and what opening
the membranes takes, which happens once for a prompt.
"""

import argparse
import statistics
from collections.abc import Sequence
from functools import partial

import torch

from expunge import Concept, Edit, Model, load
from expunge.testing import membrane
from timing import seconds

PROMPTS = ("a picture of a ghost", "a photo of a dog", "santa claus", "a man in the rain")


def edit_of(model: Model, count: int, rule: str) -> Edit:
    """So many membranes, each of other words."""
    words = (Concept(target=f"thing {number}") for number in range(count))
    edits = (membrane(model, word, at, scale=1e-3, rule=rule) for at, word in enumerate(words))
    return Edit(tuple(part for edit in edits for part in edit.components))


@torch.no_grad()
def opening_of(model: Model, prompts: Sequence[str]) -> float:
    """Seconds until the membranes at work are open for prompts and as many empty ones."""
    texts = [*[""] * len(prompts), *prompts]
    conditions, tokens = model.encode(texts), model.tokenized(texts)
    return seconds(partial(model.gates.gates[0].additions, conditions, tokens))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 5, 20])
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rule", choices=["paper", "released"], default="paper")
    options = parser.parse_args()
    model = load(options.model)
    prompts = [PROMPTS[at % len(PROMPTS)] for at in range(options.batch)]
    edits = {count: edit_of(model, count, options.rule) for count in options.counts}
    times: dict[int, list[float]] = {count: [] for count in (0, *edits)}
    opening: dict[int, list[float]] = {count: [] for count in edits}

    def draw() -> None:
        model.pipe(prompts, num_inference_steps=options.steps, output_type="latent")

    draw()
    for _ in range(options.runs):
        times[0].append(seconds(draw))
        for count, edit in edits.items():
            with edit.applied(model):
                times[count].append(seconds(draw))
                opening[count].append(opening_of(model, prompts))
    plain = statistics.median(times[0])
    print(f"{len(prompts)} pictures, {options.steps} steps, rule {options.rule}, {model.device}")
    print(f"unedited       {plain:7.3f} s")
    for count in edits:
        median = statistics.median(times[count])
        print(
            f"{count:4d} membranes {median:7.3f} s, {median / plain - 1:+6.1%}; opening them "
            f"{1000 * statistics.median(opening[count]):.1f} ms a call"
        )


if __name__ == "__main__":
    main()
