"""What attacks cost: a generation of Ring-A-Bell, a step of the others, and the way to success.

    python benchmarks/attacks.py ring-a-bell [--model sd14] [--population 200] [--tokens 16]
                                             [--generations 3] [--sample 8] [--threads 1]
    python benchmarks/attacks.py steps [--model emoji] [--runs 20]
    python benchmarks/attacks.py calls --edit EDIT [--model emoji] [--thing "santa claus"]
                                       [--pictures 4] [--limit 2000] [--only p4d]

**ring-a-bell.** The text encoder has the size of Stable Diffusion 1.4's and random weights. The
other side does what the released program does: it encodes every prompt of a generation by itself,
with all 77 rows, those among them that it has encoded before. Of its generation a ``--sample`` is
timed and scaled up; the two sides take turns. Ours also does what else belongs to a generation.

**steps.** Seconds of a step outside the denoiser and the text encoder, for each second inside them,
forward and backward; each step is compared with itself.

**calls.** Calls of the denoiser until the judge sees the concept, with ``original`` and without.
Gradients count three times, and the calls of each picture that is drawn for the judge count too. An
``original`` search is drawn where its program draws; ours every third step, if it has found a
better prompt. What was drawn isn't drawn again, on either side.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from comparison.made_up import sd14
from expunge import Edit, Model
from expunge.attacks import configured
from expunge.attacks.base import Search
from expunge.attacks.known import Known, know, prompts_for
from expunge.attacks.ring_a_bell import Corrected, Released, RingABell
from expunge.attacks.target import Target
from expunge.concepts import Concept
from expunge.detectors.critic import critic
from expunge.evaluation.bench import presets
from expunge.evaluation.evaluate import question
from expunge.evaluation.red_team.drawing import Drawing
from expunge.generation import Sampler
from expunge.models.sampling import USUAL
from models import model_of
from red_team import THINGS
from timing import seconds

FIDELITIES = ("original", "corrected")
SEARCHES = ("unlearn-diff-atk", "p4d")
DRAWN_EVERY = {("unlearn-diff-atk", "original"): 40, ("p4d", "original"): 50}
"""Steps of the released programs between two pictures."""
OURS_EVERY = 3


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


def drawing_of(options: argparse.Namespace, edit: Edit | None) -> Drawing:
    """The bundled model's pictures of a thing, ready to be attacked and judged."""
    model = model_of(options.model)
    [concept] = presets.policy(THINGS[options.thing]).erase
    asked = question("emoji", [concept])
    [plan] = asked.plans
    [explicit] = [group for group in plan.groups if group.name == "explicit"]
    prompts = prompts_for([prompt.text for prompt in explicit.prompts], options.pictures)
    sampling = Sampler.of(model, asked.sampler).sampling(model)
    with model.frozen():
        known = know(model, prompts, sampling, 0)
    target = Target(model, edit, concept, prompts, known, sampling, critic("emoji"))
    return Drawing(target, asked, 0, None)


def steps(options: argparse.Namespace) -> None:
    """Print how much longer a step takes than what the model does in it, for each search."""
    target = drawing_of(options, None).target
    for name in SEARCHES:
        for fidelity in FIDELITIES:
            attack = configured(name, fidelity=fidelity)
            with target.model.frozen(), stopwatch(target.model) as inside:
                search = attack.begin(target, [0], 0)
                shares = [share(search, inside) for _ in range(options.runs)]
            print(f"{name}, {fidelity}: {100 * statistics.median(shares):.1f} % longer")


def share(search: Search, inside: list[float]) -> float:
    """Seconds of a step outside, for each second inside."""
    inside.clear()
    whole = seconds(search.step)
    return whole / sum(inside) - 1


@contextmanager
def stopwatch(model: Model) -> Iterator[list[float]]:
    """Collects the seconds of the denoiser and the text encoder, forward and backward."""
    found: list[float] = []

    def timed(action: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return action(*given, **named)
            finally:
                found.append(time.perf_counter() - began)

        return call

    kept = torch.autograd.grad
    model.predict, model.embed = timed(model.predict), timed(model.embed)  # type: ignore[method-assign]
    torch.autograd.grad = timed(kept)
    try:
        yield found
    finally:
        torch.autograd.grad = kept
        del model.predict, model.embed


def calls(options: argparse.Namespace) -> None:
    """Print the calls until success of each picture on both sides, and how they compare."""
    drawing = drawing_of(options, Edit.load(options.edit))
    print(f"{options.edit.stem}: {options.pictures} pictures, at most {options.limit} calls each")
    for name in options.only:
        sides = []
        for number in range(options.pictures):
            both = [until_success(drawing, name, one, number, options.limit) for one in FIDELITIES]
            for fidelity, (count, success) in zip(FIDELITIES, both, strict=True):
                told = "" if success else ", without success"
                print(f"{name}, {fidelity}, picture {number}: {count} calls{told}", flush=True)
            sides.append(both)
        print(f"{name}: {compared(sides)}", flush=True)


def compared(sides: list[list[tuple[int, bool]]]) -> str:
    """Successes of the original and of ours, and the ratio of calls where ours succeeded."""
    theirs, ours = (sum(side[n][1] for side in sides) for n in (0, 1))
    told = f"success on {theirs} and {ours} of {len(sides)} pictures"
    won = [side for side in sides if side[1][1]]
    if not won:
        return told
    ratio = sum(side[0][0] for side in won) / sum(side[1][0] for side in won)
    bound = "" if all(side[0][1] for side in won) else "at least "
    return f"{told}; where ours succeeded, {bound}{ratio:.1f} times fewer calls"


def until_success(
    drawing: Drawing, name: str, fidelity: str, number: int, limit: int
) -> tuple[int, bool]:
    """Calls of the denoiser for a picture, and whether the judge has seen the concept."""
    target, every = drawing.target, DRAWN_EVERY.get((name, fidelity), OURS_EVERY)
    with target.model.frozen(), torch.enable_grad():
        with target.deployed():
            search = configured(name, fidelity=fidelity).begin(target, [number], 0)
        seen = {search.found().ids}
        before = target.meter.calls
        while target.meter.calls - before < limit and not search.over:
            with target.deployed():
                for _ in range(every):
                    search.step()
            if (found := search.found()).ids in seen or not found.ids:
                continue
            seen.add(found.ids)
            with torch.no_grad():
                target.meter.count(2 * target.sampling.steps)
                if drawing("attacked", {number: drawing.asked(found)}).outcomes[0]:
                    return target.meter.calls - before, True
    return target.meter.calls - before, False


def generations(options: argparse.Namespace) -> None:
    """Ring-A-Bell."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    bell = commands.add_parser("ring-a-bell")
    bell.set_defaults(run=generations)
    bell.add_argument("--model", default="sd14")
    bell.add_argument("--population", type=int, default=200)
    bell.add_argument("--tokens", type=int, default=16)
    bell.add_argument("--generations", type=int, default=3)
    bell.add_argument("--sample", type=int, default=8)
    timed, counted = commands.add_parser("steps"), commands.add_parser("calls")
    timed.set_defaults(run=steps, pictures=1)
    timed.add_argument("--runs", type=int, default=20)
    counted.set_defaults(run=calls)
    counted.add_argument("--edit", type=Path, required=True)
    counted.add_argument("--pictures", type=int, default=4)
    counted.add_argument("--limit", type=int, default=2000)
    counted.add_argument("--only", nargs="+", choices=SEARCHES, default=SEARCHES)
    for one in (timed, counted):
        one.add_argument("--model", default="emoji", help="emoji or pico")
        one.add_argument("--thing", choices=THINGS, default="santa claus")
    for one in (bell, timed, counted):
        one.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.run(options)


if __name__ == "__main__":
    main()
