"""TRCE's steering stage: samples through the UNet, beside the published program's schedule.

    python benchmarks/trce_steering.py [--words 20] [--iterations 300]

The published side is counted from its schedule: each of 5 trajectories a word, and 2000 of the
empty prompt, takes all 50 steps with two samples each; each training step looks at 3 prompts with
the base model, at 2 with the student, and at 4 held latents (one draw in 51 is out of range and
skipped) with stage 1 and with the student, one sample a pass. Our side is measured: everything
that goes through the UNet of a small random model, on which the same code runs as on a large one.
Gradients aren't counted; they belong to the student's samples alone, which are the same.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from expunge import Concept, Model, Policy, load, testing
from expunge.method.run import Run
from expunge.methods.trce.schedule import RELEASED_EMPTY, RELEASED_REPEATS
from expunge.methods.trce.steering import TRCESteering
from expunge.training.loop import fit

STEPS, HELD = 50, 4
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@contextmanager
def counted(model: Model) -> Iterator[list[int]]:
    """Samples of each pass through the UNet."""
    passes: list[int] = []
    hook = model.denoiser.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    try:
        yield passes
    finally:
        hook.remove()


def published(words: int, iterations: int) -> tuple[list[int], list[int]]:
    """Samples of each pass of the published program: for the data, and of the training."""
    data = 2 * STEPS * (RELEASED_REPEATS * words + RELEASED_EMPTY)
    drawn = round(iterations * HELD * STEPS / (STEPS + 1))
    return [1] * data, [1] * (iterations * (3 + 2) + 2 * drawn)


def ours(model: Model, policy: Policy, **values: Any) -> tuple[list[int], list[int]]:
    """The same of one of our runs."""
    method = TRCESteering(**values)
    student = method.student(model, policy, 0)
    with counted(model) as data:
        batches = list(method.batches(Run(student, policy, 0), range(method.iterations)))
    with counted(model) as training:
        fit(method, student, batches)
    return data, training


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--words", type=int, default=20, help="wordings of what is erased")
    parser.add_argument("--iterations", type=int, default=300)
    options = parser.parse_args()
    words = [f"ghost {LETTERS[number]}" for number in range(options.words)]
    kept = Concept(target=words[0], synonyms=words[1:], anchor="a dog", keep=["cat", "man"])
    bare = kept.model_copy(update={"keep": ()})
    values: dict[str, Any] = {"iterations": options.iterations}
    original = {**values, "fidelity": "original", "lamb": 1.0}
    rows = {"published": published(options.words, options.iterations)}
    with tempfile.TemporaryDirectory() as folder:
        model = load(testing.pipeline(Path(folder)))
        for name, concept, settings in (
            ("original", bare, original),
            ("corrected", bare, {**values, "everyday": 0}),
            ("corrected, with things to keep", kept, values),
        ):
            started = time.monotonic()
            rows[name] = ours(model, Policy.of(concept), **settings)
            print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    total = sum(map(sum, rows["published"]))
    print(f"{options.words} wordings, {options.iterations} training steps")
    print("| | samples for data | in training | together | published / this | passes |")
    print("|---|---|---|---|---|---|")
    for name, (data, training) in rows.items():
        here = sum(data) + sum(training)
        print(
            f"| {name} | {sum(data):,} | {sum(training):,} | {here:,} | {total / here:.1f} "
            f"| {len(data) + len(training):,} |"
        )


if __name__ == "__main__":
    main()
