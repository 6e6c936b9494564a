"""What residual attention gates cost: to train, to open, and while drawing.

    python benchmarks/gated.py training [--concepts 1] [--shifts 16] [--anchors 32] [--sizes sd14]
    python benchmarks/gated.py gates [--concepts 100 1000] [--sizes sd14]
    python benchmarks/gated.py sampling [--gates 100] [--steps 50] [--rounds 5] [--model emoji]
    python benchmarks/gated.py passes [--gates 100] [--steps 50] [--rounds 5] [--model sd14]
    python benchmarks/gated.py many [--concepts 50] [--things 107] [--iterations 300]
                                    [--model emoji]

``training`` and ``gates`` have the sizes of Stable Diffusion 1.4 (32 keys and values of 768-wide
rows, 77 tokens) and random weights. ``training`` compares one step, forward and backward, with
the direct form: every layer computes its own gate, and keys and values of all prompts. ``sampling``
draws with the bundled model, the two pipelines in turns, so that both see the same machine.
``passes`` times single passes of a UNet of Stable Diffusion 1.4's size (random weights, latents of
32 x 32, a prompt and the empty one) in the same way, and adds them up to a picture's ``--steps``.
``many`` trains gates for every second thing that the bundled model draws, each towards the one that
follows it, and draws all of them and all others once.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

import expunge
from expunge.detectors.emoji import load_judges
from expunge.edits.base import Base
from expunge.edits.component import Component, Provenance
from expunge.edits.edit import Edit
from expunge.edits.installed import gated
from expunge.edits.residual_gates import ResidualGates
from expunge.evaluation.bench import presets
from expunge.memory import peak_memory
from expunge.methods.cpe.losses import StepEmbeddings, Surface, erasing
from expunge.models import Condition
from expunge.models.emoji import catalog
from expunge.statistics.rates import Rate
from models import model_of
from pictures import pictures
from sizes import SIZES, Sizes
from timing import seconds, typical

RANK = 16
GUIDANCE, PAL = 0.3, 1e5


def gates(concepts: int, sizes: Sizes, names: tuple[str, ...] = ()) -> ResidualGates:
    """Random gates for keys and values of these sizes; else they are as the published ones."""
    draws = torch.Generator().manual_seed(0)
    names = names or tuple(f"{number}.weight" for number in range(len(sizes.outputs)))
    width = sizes.width

    def random(*shape: int, scale: float = 0.04) -> Tensor:
        return scale * torch.randn(shape, generator=draws)

    return ResidualGates(
        names,
        random(concepts, RANK, width),
        None,
        random(concepts, width),
        random(concepts, len(names), 1, width),
        random(concepts, 1, sum(sizes.outputs), scale=0.01),
        sizes.outputs,
    )


# --- training


def direct(surface: Surface, own: ResidualGates, prompts: StepEmbeddings, shifts: Tensor) -> Tensor:
    """The loss of one concept, layer by layer, each with keys, values and a gate of its own."""
    target, neutral = prompts.target, prompts.neutral
    shifted = target + shifts[0]
    total = target.new_zeros(())
    for layer, (weight, up) in enumerate(zip(surface.weights, own.ups, strict=True)):

        def addition(rows: Tensor, layer: int = layer, up: Tensor = up) -> Tensor:
            seen = rows @ own.query[0].T
            edited = torch.softmax(seen @ seen.mT, -1) @ rows
            opening = torch.sigmoid(edited @ own.gate[0])[..., None]
            return (opening * edited) @ own.down[0, layer].T @ up[0]

        old, new = target @ weight.T, neutral @ weight.T
        goal = new + GUIDANCE * (new - old)
        losses = (
            (goal - (old + addition(target))).square().mean(),
            (goal - (shifted @ weight.T + addition(shifted))).square().mean(),
            # the released program computes the anchors' keys and values twice, and subtracts
            (prompts.anchors @ weight.T + addition(prompts.anchors) - prompts.anchors @ weight.T)
            .square()
            .mean(),
        )
        erase, adversarial, anchor = losses
        kappa = float(surface.kappa[layer])
        total = total + kappa * (erase + adversarial + PAL * anchor) / len(surface.weights)
    return total


def training(concepts: int, count: int, anchors: int, sizes: Sizes) -> None:
    torch.set_num_threads(1)
    draws = torch.Generator().manual_seed(0)
    one, width = gates(1, sizes), sizes.width
    weights = tuple(torch.randn(out, width, generator=draws) / 28 for out in sizes.outputs)
    kappa = torch.rand(len(weights), generator=draws).double() + 0.5
    surface = Surface(one.names, weights, kappa)
    rows = torch.randn(2, sizes.tokens, width, generator=draws)
    kept = torch.randn(anchors + 1, sizes.tokens, width, generator=draws)

    def shifted(many: int) -> Tensor:
        fresh = draws.manual_seed(1)
        return 0.1 * torch.randn(many, count, sizes.tokens, width, generator=fresh)

    def step(own: ResidualGates, loss: Callable[[ResidualGates], Tensor]) -> list[Tensor]:
        leaves = {name: t.clone() for name, t in own.tensors().items()}
        trained = [t.requires_grad_() for name, t in leaves.items() if name != "widths"]
        loss(ResidualGates.of(own.names, leaves)).backward()  # type: ignore[no-untyped-call]
        return [t.grad for t in trained if t.grad is not None]

    def reduced(many: int) -> Callable[[ResidualGates], Tensor]:
        prompts = StepEmbeddings(rows[:1].expand(many, -1, -1), rows[1:].expand(many, -1, -1), kept)
        shifts = shifted(many)
        square = surface.squared(shifts)  # once for a stage

        def loss(own: ResidualGates) -> Tensor:
            found = erasing(own, surface, prompts, GUIDANCE, shifts, square)
            assert found.adversarial is not None
            return (found.erase + found.adversarial + PAL * found.anchor).sum()

        return loss

    shifts = shifted(1)
    prompts = StepEmbeddings(rows[:1], rows[1:], kept)
    loss = reduced(1)
    ours: list[Tensor] = []
    theirs: list[Tensor] = []
    with peak_memory() as used:
        quick = typical(lambda: ours.extend(step(one, loss)), 5)
        slow = seconds(
            lambda: theirs.extend(step(one, lambda own: direct(surface, own, prompts, shifts)))
        )
    worst = max(
        float((a - b).norm() / b.norm()) for a, b in zip(ours[: len(theirs)], theirs, strict=True)
    )
    print(
        f"one step, {1 + count + anchors + 1} prompts, one thread, "
        f"{used.peak / 1e9:.1f} GB at the peak so far"
    )
    print(f"  direct  {slow:8.3f} s")
    print(f"  reduced {quick:8.3f} s, {slow / quick:.0f} times faster, gradients {worst:.0e} apart")
    if concepts > 1:
        many, loss = gates(concepts, sizes), reduced(concepts)
        both = typical(lambda: step(many, loss), 3)
        print(f"  {concepts} concepts side by side {both:.3f} s, {both / concepts:.4f} s each")


# --- gates


def opening(counts: list[int], sizes: Sizes) -> None:
    """Open all gates for a prompt and the empty one, and compute what every layer adds."""
    for count in counts:
        own = gates(count, sizes)
        size = sum(t.numel() * t.element_size() for t in own.tensors().values())
        taken, cached = [], []
        empty = torch.randn(1, sizes.tokens, sizes.width)
        with torch.no_grad(), peak_memory() as used:
            for _ in range(6):
                conditions = torch.cat([empty, torch.randn_like(empty)])

                def run(conditions: Tensor = conditions, own: ResidualGates = own) -> None:
                    added = own.additions(conditions, [None, None])
                    for name in own.names:
                        added[name](conditions)

                taken.append(seconds(run))
                cached.append(seconds(run))
        first, later = taken[0], statistics.median(taken[1:])
        print(
            f"{count:5d} gates ({size / 1e6:.0f} MB), {torch.get_num_threads()} threads: first "
            f"prompt and empty prompt {first * 1e3:.0f} ms, every other {later * 1e3:.0f} ms, "
            f"the same again {statistics.median(cached) * 1e3:.1f} ms, "
            f"{used.added / 1e6:+.0f} MB at the peak"
        )


# --- sampling


class _Plain:
    """Adds nothing: what is left is that keys and values of a prompt are kept."""

    reads_tokens = False

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def additions(self, rows: Tensor, tokens: object) -> dict[str, object]:
        return {}


def gating(model: expunge.Model, count: int) -> Edit:
    """An edit of so many gates."""
    names = model.select("cross_attention.kv")
    made = gates(count, Sizes.of(model), names)
    base = Base.of(model, names, reads_text=True)
    record = Provenance(
        method="cpe", settings={}, concepts=(), keep=(), seed=0, base=base, versions={}
    )
    return Edit((Component(made, record),))


def sampling(count: int, steps: int, rounds: int, model: expunge.Model) -> None:
    torch.set_num_threads(1)
    names = model.select("cross_attention.kv")
    edit = gating(model, count)

    def draw(number: int) -> float:
        generator = torch.Generator().manual_seed(number)
        prompt = f"a picture of santa claus number {number}"
        return seconds(
            lambda: model.pipe(
                prompt, num_inference_steps=steps, generator=generator, output_type="latent"
            )
        )

    def plain(number: int) -> float:
        return draw(number)

    def edited(number: int) -> float:
        with edit.applied(model):
            return draw(number)

    def kept(number: int) -> float:
        with gated(model, [_Plain(names)]):  # type: ignore[list-item]
            return draw(number)

    variants = {"unedited": plain, f"{count} gates": edited, "keys and values kept alone": kept}
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        order = list(variants.items())
        for name, run in order if number % 2 else order[::-1]:
            taken = run(number)
            if number:  # the first round warms up
                times[name].append(taken)
    unedited = times["unedited"]
    print(f"{steps} steps, one picture at a time, one thread, {rounds} rounds in turns")
    for name, own in times.items():
        ratios = [one / two for one, two in zip(own, unedited, strict=True)]
        print(
            f"  {name:<28} {statistics.median(own):.3f} s, {statistics.median(ratios):.3f} times "
            f"the unedited pipeline ({min(ratios):.3f} to {max(ratios):.3f})"
        )


@torch.no_grad()
def passes(count: int, steps: int, rounds: int, name: str) -> None:
    model = model_of(name, latents=32)
    sizes = Sizes.of(model)
    edit = gating(model, count)
    latents = torch.randn(2, *model.latent_shape)
    times: dict[str, list[float]] = {"plain": [], "first": [], "later": []}
    for number in range(rounds + 1):
        condition = Condition(torch.randn(2, sizes.tokens, sizes.width))

        def run(condition: Condition = condition) -> float:
            return seconds(lambda: model.predict(latents, 500, condition))

        before = run()
        with edit.applied(model):
            first, later, again = run(), run(), run()
        after = run()
        if number:
            times["plain"] += [before, after]
            times["first"].append(first)
            times["later"] += [later, again]
    plain, first, later = (statistics.median(own) for own in times.values())
    ratio = (first + (steps - 1) * later) / (steps * plain)
    print(
        f"{name}, {count} gates, {torch.get_num_threads()} threads: a pass takes "
        f"{plain:.2f} s without, {first:.2f} s when a prompt is new, {later:.2f} s after that; "
        f"{steps} steps {ratio:.3f} times the unedited ones"
    )


def many(count: int, things: int | None, iterations: int | None, model: expunge.Model) -> None:
    known = catalog().objects[:things]
    concepts = [
        expunge.Concept(target=one.name, anchor=other.name)
        for one, other in zip(known[: 2 * count : 2], known[1 : 2 * count : 2], strict=True)
    ]
    policy = presets.policy(*concepts)
    values = presets.settings("cpe", concepts[0])
    if iterations:
        stages = ("first_iterations", "later_iterations", "attack_iterations")
        values |= dict.fromkeys(stages, iterations)
    edits: list[Edit] = []
    taken = seconds(lambda: edits.append(expunge.erase(model, policy, "cpe", **values)))
    edit = edits[0]
    judges = load_judges()

    def right(things: list[str]) -> Rate:
        drawn = pictures(model, [f"{thing}, noto style" for thing in things])
        seen = judges.classify(drawn).objects.tolist()
        names = [judges.objects[at] if at >= 0 else "" for at in seen]
        return Rate.of([name == thing for name, thing in zip(names, things, strict=True)])

    erased = [one.target for one in concepts]
    kept = [one.name for one in known if one.name not in erased]
    before = right(erased), right(kept)
    with edit.applied(model):
        after = right(erased), right(kept)
    print(
        f"{count} concepts, {torch.get_num_threads()} threads: trained in {taken:.0f} s, "
        f"{edit.size / 1e6:.1f} MB"
    )
    for label, one, two in zip(("erased", "others"), before, after, strict=True):
        low, high = (100 * bound for bound in two.interval)
        print(f"  {label}: {one.successes} -> {two.successes} of {two.n} ({low:.0f}-{high:.0f} %)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parts = parser.add_subparsers(dest="part", required=True)
    one = parts.add_parser("training")
    one.add_argument("--concepts", type=int, default=1)
    one.add_argument("--shifts", type=int, default=16)
    one.add_argument("--anchors", type=int, default=32)
    two = parts.add_parser("gates")
    two.add_argument("--concepts", type=int, nargs="+", default=[100, 1000])
    three = parts.add_parser("sampling")
    four = parts.add_parser("passes")
    for part in (three, four):
        part.add_argument("--gates", type=int, default=100)
        part.add_argument("--steps", type=int, default=50)
        part.add_argument("--rounds", type=int, default=5)
    five = parts.add_parser("many")
    five.add_argument("--concepts", type=int, default=50)
    five.add_argument("--things", type=int, help="that are drawn; all by default")
    five.add_argument("--iterations", type=int, help="of each stage, for the preset's")
    for part in (one, two):
        part.add_argument("--sizes", choices=SIZES, default="sd14")
    for part in (three, five):
        part.add_argument("--model", default="emoji", help="emoji or pico")
    four.add_argument("--model", choices=["sd14", "pico"], default="sd14")
    options = parser.parse_args()
    match options.part:
        case "training":
            training(options.concepts, options.shifts, options.anchors, SIZES[options.sizes])
        case "gates":
            opening(options.concepts, SIZES[options.sizes])
        case "sampling":
            sampling(options.gates, options.steps, options.rounds, model_of(options.model))
        case "passes":
            passes(options.gates, options.steps, options.rounds, options.model)
        case "many":
            many(options.concepts, options.things, options.iterations, model_of(options.model))


if __name__ == "__main__":
    main()
