"""Pictures per second: a plain loop, the sampler, and the sampler with scoring.

    python benchmarks/throughput.py [--model emoji] [--pictures 24] [--steps 20] [--rounds 5]
    python benchmarks/throughput.py --model sd14 [--pictures 2] [--steps 2] [--rounds 3]

``loop`` is what released scripts do: the diffusers pipeline, prompt by prompt. ``sample`` draws the
same requests with ``expunge.generation.sample``, in the same steps and guidance. ``generate`` also
writes them, as PNG with a record of each, and ``evaluate`` has them judged beside, as an
evaluation does; the judge is the bundled model's. ``sd14`` has the size of Stable Diffusion 1.4
and random weights; its VAE is a small one in all columns, and nothing judges its pictures. The
kinds take turns, and ratios are of one round each. ``--lanes`` tries other numbers of pictures
side by side. Peak memory is that of a process of its own for each kind (on a GPU, what torch has
allocated).
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median

import torch

from expunge import Concept, Model
from expunge.evaluation.drawing import draw
from expunge.evaluation.drawing import requests as requests_of
from expunge.evaluation.evaluate import question
from expunge.evaluation.judging import Judgements
from expunge.evaluation.suite import Shot
from expunge.generation import ImageRequest, Sampler, generate, sample, sampling
from expunge.memory import peak_memory
from models import model_of
from timing import seconds

KINDS = ("loop", "sample", "generate", "evaluate")


QUESTION = question("emoji", [Concept(target="santa claus", kind="character")], size="full")


def shots(count: int) -> list[Shot]:
    """Some pictures of an evaluation, all of different prompts."""
    return list(islice({shot.number: shot for shot in QUESTION.shots[::5]}.values(), count))


def loop(model: Model, requests: list[ImageRequest], sampler: Sampler) -> None:
    name, steps, scale = sampler.sampling(model)
    model.pipe.scheduler = model.process.scheduler(name, steps)
    for request in requests:
        model.pipe(
            request.prompt,
            num_inference_steps=steps,
            guidance_scale=scale,
            generator=torch.Generator().manual_seed(request.seed),
        )


def sampled(model: Model, requests: list[ImageRequest], sampler: Sampler) -> None:
    for _ in sample(model, requests, sampler):
        pass


def written(model: Model, requests: list[ImageRequest], sampler: Sampler) -> None:
    with tempfile.TemporaryDirectory() as folder:
        generate(model, requests, folder, sampler)


def evaluated(model: Model, asked: Sequence[Shot], sampler: Sampler) -> None:
    with tempfile.TemporaryDirectory() as folder:
        judgements = Judgements(QUESTION.judge, Path(folder))
        with judgements.beside_drawing() as watch:
            files = draw(model, asked, sampler, Path(folder), watch)
        judgements.judged(asked, files)


def peak(kind: str, arguments: list[str]) -> str:
    """Peak memory of one kind with its model, in a process that does nothing else."""
    command = [sys.executable, __file__, *arguments, "--only", kind]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def runs_of(device: str, options: argparse.Namespace) -> dict[str, Callable[[], None]]:
    """One round of each kind, with a model of their own."""
    model = model_of(options.model, device)
    if options.lanes:
        pixels = options.lanes * model.latent_shape[1] * model.latent_shape[2]
        sampling._LATENT_PIXELS[torch.device(device).type] = pixels
    sampler, asked = Sampler(steps=options.steps), shots(options.pictures)
    requests = requests_of(asked)
    runs: dict[str, Callable[[], None]] = {
        "loop": partial(loop, model, requests, sampler),
        "sample": partial(sampled, model, requests, sampler),
        "generate": partial(written, model, requests, sampler),
        "evaluate": partial(evaluated, model, asked, sampler),
    }
    return {kind: runs[kind] for kind in kinds_of(options.model)}


def kinds_of(model: str) -> tuple[str, ...]:
    return KINDS[:-1] if model == "sd14" else KINDS


def report_peak(device: str, options: argparse.Namespace) -> None:
    with peak_memory(torch.device(device)) as used:
        runs_of(device, options)[options.only]()
    print(f"{used.peak / 1e6:.0f} MB")


def report(device: str, options: argparse.Namespace, arguments: list[str]) -> None:
    peaks = {kind: peak(kind, arguments) for kind in kinds_of(options.model)}
    runs, pictures = runs_of(device, options), len(shots(options.pictures))
    for run in runs.values():  # what happens once doesn't count
        run()
    times: dict[str, list[float]] = {kind: [] for kind in runs}
    for number in range(options.rounds):
        for kind in list(runs)[:: 1 if number % 2 else -1]:
            times[kind].append(seconds(runs[kind]))
    print(
        f"{options.model} on {device}, {torch.get_num_threads()} threads, {pictures} pictures "
        f"of {options.steps} steps, {options.rounds} rounds"
    )
    for kind, own in times.items():
        ratios = sorted(base / one for base, one in zip(times["loop"], own, strict=True))
        beside = sorted(one / base for base, one in zip(times["sample"], own, strict=True))
        print(
            f"  {kind:9s} {pictures / median(own):7.2f} pictures/s  "
            f"{median(ratios):5.2f} × the loop ({ratios[0]:.2f}–{ratios[-1]:.2f})  "
            f"{median(beside):5.2f} × the time of sample ({beside[0]:.2f}–{beside[-1]:.2f})  "
            f"peak {peaks[kind]}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="emoji", help="emoji, sd14 or pico")
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lanes", type=int, default=0, help="pictures side by side; 0: as it is")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="both, where there is a GPU")
    parser.add_argument("--only", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    usual = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in [options.device] if options.device else usual:
        if options.only:
            report_peak(device, options)
        else:
            report(device, options, [*sys.argv[1:], "--device", device])


if __name__ == "__main__":
    main()
