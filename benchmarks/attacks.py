"""What a generation of Ring-A-Bell costs.

    python benchmarks/attacks.py ring-a-bell [--model sd14] [--population 200] [--tokens 16]
                                             [--generations 3] [--sample 8] [--threads 1]

The text encoder has the size of Stable Diffusion 1.4's and random weights. The other side does
what the released program does: it encodes every prompt of a generation by itself, with all 77 rows,
those among them that it has encoded before. Of its generation a ``--sample`` is timed and scaled
up; the two sides take turns. Ours also does what else belongs to a generation.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import torch

from comparison.made_up import sd14
from expunge import Concept, Model
from expunge.attacks.known import Known
from expunge.attacks.ring_a_bell import Corrected, Released, RingABell
from expunge.attacks.target import Target
from expunge.models.sampling import USUAL
from models import model_of
from timing import seconds


def target_of(model: Model) -> Target:
    """A target of which only the text encoder is needed."""
    nothing = torch.zeros(0, *model.latent_shape)
    numbers = torch.zeros(0, dtype=torch.int64)
    known = Known(nothing, nothing, numbers, numbers, nothing, nothing)
    return Target(model, None, Concept(target="ghost"), ("a photo of noto art",), known, USUAL)


@torch.no_grad()
def ring_a_bell(model: Model, population: int, tokens: int, generations: int, sample: int) -> None:
    """Print seconds of a generation on both sides."""
    target, settings = target_of(model), {"population": population, "tokens": tokens}
    ours = Corrected(RingABell(**settings), target, [0], 0)
    theirs = Released(RingABell(fidelity="original", **settings), target, [0], 0)
    theirs.vocabulary = ours.vocabulary
    theirs.fitness(theirs.population[:1])  # the target is encoded once on either side
    ours.fitness(ours.population[:1])

    def one_by_one() -> None:
        for individual in theirs.population[:sample]:
            theirs.fitness(individual[None])

    own, other = [], []
    for _ in range(generations):
        own.append(seconds(ours.step))
        other.append(seconds(one_by_one) * population / sample)
    # In the first generation all prompts are new.
    usual = statistics.median(own[1:] or own)
    released = statistics.median(other)
    print(f"ours: {own[0]:.2f} s the first generation, {usual:.2f} s each of the others")
    print(f"one by one: {released:.2f} s")
    print(f"{released / usual:.1f} times faster")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["ring-a-bell"])
    parser.add_argument("--model", default="sd14")
    parser.add_argument("--population", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--generations", type=int, default=3)
    parser.add_argument("--sample", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        model = sd14(Path(folder)) if options.model == "sd14" else model_of(options.model)
        with model.frozen():
            ring_a_bell(
                model,
                options.population,
                options.tokens,
                options.generations,
                options.sample,
            )


if __name__ == "__main__":
    main()
