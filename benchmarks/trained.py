"""The trained methods: time in the UNet, memory, and the way to a given erasure.

    python benchmarks/trained.py steps [--only METHOD ...] [--model sd14]
    python benchmarks/trained.py memory [--model sd14]
    python benchmarks/trained.py esd [--limit 900]

``steps``: the share of a training step that is spent inside of the UNet, forwards and backwards, on
a UNet of Stable Diffusion 1.4's size with random weights and latents of 32 x 32.

``memory``: peak memory of ESD-x on that UNet, beside the way of the released program: a frozen and
a trained UNet, both whole, with gradients for all parameters. Each in a process of its own.

``esd``: minutes until ESD has erased a style from the bundled model, beside the released schedule
(one new partial denoising for each step, one latent in it), with the same loss, parameters and
optimiser.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from expunge import Concept, Model, Policy, erase
from expunge.detectors.emoji import load_judges
from expunge.evaluation.bench import presets
from expunge.memory import peak_memory
from expunge.method.base import Trained
from expunge.method.batch import Batch
from expunge.method.run import Run
from expunge.methods import configured
from expunge.methods.esd.method import ESD
from expunge.models.emoji import catalog
from expunge.seeding import generator
from expunge.training.loop import Monitor, Trainer, train
from expunge.training.trajectories import ddim, denoise
from models import model_of
from pictures import pictures
from timing import seconds

CHEAP = {"num_inference_steps": 2, "contexts": ("{}",)}
METHODS: dict[str, dict[str, object]] = {
    "esd": {**CHEAP, "trajectories": 1, "batch_size": 1},
    "ac": {**CHEAP, "images": 1, "batch_size": 1},
    "cie": {**CHEAP, "trajectories": 1},
    "fmn": {**CHEAP, "images": 1, "batch_size": 1},
    "trce-steering": {
        **CHEAP, "trajectories": 1, "max_early_timestep": 1, "regularization_batch_size": 1
    },
}  # fmt: skip
"""Settings that make the data of a step cheap; a step itself stays what it is."""


# --- time in the UNet


@contextmanager
def inside(model: Model) -> Iterator[list[float]]:
    """Seconds of every pass of the UNet, and of every backward pass."""
    passes: list[float] = []
    started: list[float] = []
    backward = Tensor.backward

    def timed(self: Tensor, *arguments: object, **options: object) -> None:
        start = time.perf_counter()
        backward(self, *arguments, **options)  # type: ignore[arg-type]
        passes.append(time.perf_counter() - start)

    hooks = [
        model.denoiser.register_forward_pre_hook(lambda *_: started.append(time.perf_counter())),
        model.denoiser.register_forward_hook(
            lambda *_: passes.append(time.perf_counter() - started.pop())
        ),
    ]
    Tensor.backward = timed  # type: ignore[method-assign]
    try:
        yield passes
    finally:
        Tensor.backward = backward  # type: ignore[method-assign]
        for hook in hooks:
            hook.remove()


def steps(only: Iterable[str], model: Model) -> None:
    policy = Policy.of(Concept(target="ghost"))
    for name in only:
        method = configured(name, **METHODS[name])
        assert isinstance(method, Trained)
        student = method.student(model, policy, 0)
        trainer = Trainer(method, student)
        batch = next(iter(method.batches(Run(student, policy, 0), range(1))))
        trainer.step([batch])
        shares, totals = [], []
        for _ in range(3):
            with inside(model) as passes:
                totals.append(seconds(lambda: trainer.step([batch])))  # noqa: B023
            shares.append(sum(passes) / totals[-1])
        print(
            f"{name:<14} step {statistics.median(totals):6.2f} s, "
            f"{100 * statistics.median(shares):.1f} % of it in the UNet",
            flush=True,
        )


# --- memory


def ours_memory(name: str) -> None:
    with peak_memory() as used:
        model = model_of(name, latents=32)
        erase(model, "ghost", "esd", iterations=2, **METHODS["esd"])
    print(f"ours: one UNet, copies of what is trained: {used.peak / 2**30:.1f} GB", flush=True)


def theirs_memory(name: str) -> None:
    with peak_memory() as used:
        two_unets(name)
    print(f"two UNets, gradients of a whole one:       {used.peak / 2**30:.1f} GB", flush=True)


def two_unets(name: str) -> None:
    """A frozen and a trained UNet, gradients for all of the second, Adam for cross-attention."""
    frozen, trained = (model_of(name, latents=32) for _ in range(2))
    network = trained.denoiser.requires_grad_(True)
    weights = [network.get_parameter(weight) for weight in trained.select("cross_attention")]
    optimizer = torch.optim.Adam(weights, lr=1e-5)
    latents = torch.randn(1, *frozen.latent_shape)
    timestep = torch.tensor([500])
    words, empty = frozen.condition(["ghost"]), frozen.condition([""])
    for _ in range(2):
        optimizer.zero_grad()
        with torch.no_grad():
            both = [frozen.predict(latents, timestep, one) for one in (words, empty)]
        predicted = trained.predict(latents, timestep, words)
        loss = (predicted - (2 * both[1] - both[0])).square().mean()
        loss.backward()
        optimizer.step()


def memory(name: str) -> None:
    for part in ("ours-memory", "theirs-memory"):
        subprocess.run([sys.executable, __file__, part, "--model", name], check=True)


# --- time to a given erasure


class Fresh(ESD):
    """ESD's loss, on the released schedule: a new partial denoising for each step."""

    name = "esd-fresh"

    def batches(self, run: Run, numbers: Iterable[int]) -> Iterator[Batch]:
        model = run.model
        words = self.kept_words(model, run.policy, self.contexts, self.preserve_scale)
        pairs = [pair for one in run.policy.erase for pair in one.pairs(self.contexts)]
        empty = model.condition([""])
        for number in numbers:
            draws = generator(run.seed, "fresh", number)
            pair = pairs[int(torch.randint(len(pairs), (), generator=draws))]
            anchor = pair.anchor if run.policy.erase[0].replacement else ""
            scheduler = ddim(model.process, self.num_inference_steps)
            stop = int(torch.randint(self.num_inference_steps, (), generator=draws))
            latents = torch.randn((1, *model.latent_shape), generator=draws)
            condition = model.condition([pair.erase])
            for step in denoise(
                model.predict, scheduler, latents, condition, empty,
                guidance_scale=self.start_guidance, timesteps=scheduler.timesteps[:stop],
            ):  # fmt: skip
                latents = step.after
            timestep = scheduler.timesteps[stop].reshape(1)
            erased = run.student.teach(latents, timestep, condition)
            base = run.student.teach(latents, timestep, model.condition([anchor]))
            target = base - self.negative_guidance * (erased - base)
            batch = {"latents": latents, "timestep": timestep, "condition": condition}
            yield {**batch, "target": target, **words}


def scores(model: Model, concept: Concept, kept: Sequence[str], count: int) -> dict[str, float]:
    """Shares of pictures: the erased style where it is asked for, the right one elsewhere."""
    judges = load_judges()
    things = [entry.name for entry in catalog().objects[::4][:count]]
    erased = [f"{thing}, {concept.target} style" for thing in things]
    others = [f"{thing}, {kept[at % len(kept)]} style" for at, thing in enumerate(things)]
    drawn = pictures(model, erased + others)
    styles = [judges.styles[i] for i in judges.classify(drawn).styles.tolist()]
    asked = [kept[at % len(kept)] for at in range(len(things))]
    pairs = zip(styles[len(things) :], asked, strict=True)
    return {
        "erased": styles[: len(things)].count(concept.target) / len(things),
        "kept": sum(style == want for style, want in pairs) / len(things),
    }


class Look(NamedTuple):
    """A training on its way."""

    seconds: float
    samples: int
    """Latents that went through the UNet so far."""
    scores: Mapping[str, float]


def way(model: Model, method: ESD, every: int, options: argparse.Namespace) -> list[Look]:
    """What was seen until the style was erased or time was up; looking itself isn't counted."""
    concept = Concept(target="ink", kind="style", anchor="noto")
    policy = presets.policy(concept)
    looking, begin, passes = 0.0, time.perf_counter(), 0
    seen: list[Look] = []

    def count(_: object, arguments: tuple[Tensor, ...]) -> None:
        nonlocal passes
        passes += len(arguments[0])

    def look(now: Model) -> Mapping[str, float]:
        nonlocal looking, passes
        start, before = time.perf_counter(), passes
        found = scores(now, concept, policy.kept, options.things)
        seen.append(Look(start - begin - looking, before, found))
        looking, passes = looking + time.perf_counter() - start, before
        return found

    def enough(found: Mapping[str, float]) -> bool:
        return found["erased"] <= 0.05 or seen[-1].seconds > options.limit

    counting = model.denoiser.register_forward_pre_hook(count)
    try:
        train(method, model, policy, seed=0, monitor=Monitor(every, look, enough))
    finally:
        counting.remove()
    return seen


def esd(model: Model, options: argparse.Namespace) -> None:
    concept = Concept(target="ink", kind="style", anchor="noto")
    values = presets.settings("esd", concept)
    if options.trajectories:
        values["trajectories"] = options.trajectories
    ours = ESD(**values)
    values = ours.model_dump(exclude={"preset"})
    fresh = {"batch_size": 1, "iterations": 10_000, "num_inference_steps": 50}
    base = scores(model, concept, ["noto"], options.things)
    print(f"{torch.get_num_threads()} threads; base {base}", flush=True)
    ways = {
        "ours": way(model, ours, options.every[0], options),
        "released schedule": way(model, Fresh(**{**values, **fresh}), options.every[1], options),
    }
    for (label, seen), every in zip(ways.items(), options.every, strict=True):
        last = seen[-1]
        state = "erased" if last.scores["erased"] <= 0.05 else "not erased"
        print(
            f"{label}: {state} after {last.seconds:.0f} s ({every * len(seen)} steps, "
            f"{last.samples} samples through the UNet), {100 * last.scores['erased']:.0f} % left, "
            f"{100 * last.scores['kept']:.0f} % of others right",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parts = ("steps", "memory", "esd", "ours-memory", "theirs-memory")
    parser.add_argument("part", choices=parts)
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--limit", type=float, default=900, help="seconds of training at most")
    parser.add_argument(
        "--every", type=int, nargs=2, default=[10, 25], help="steps between looks, ours and theirs"
    )
    parser.add_argument("--trajectories", type=int, help="of ours, for the preset's")
    parser.add_argument("--things", type=int, default=27, help="that are drawn in each look")
    parser.add_argument("--model", help="sd14, or pico; for esd emoji, or pico")
    options = parser.parse_args()
    name = options.model or ("emoji" if options.part == "esd" else "sd14")
    match options.part:
        case "steps":
            steps(options.only, model_of(name, latents=32))
        case "memory":
            memory(name)
        case "esd":
            esd(model_of(name), options)
        case "ours-memory":
            ours_memory(name)
        case "theirs-memory":
            theirs_memory(name)


if __name__ == "__main__":
    main()
