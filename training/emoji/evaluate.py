"""Measure a pipeline with the judges: every object in every style, several seeds."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import SIZE, parser, prepare, settings, write, write_json
from diffusers import StableDiffusionPipeline
from left_out import LeftOut
from PIL import Image

from expunge.detectors.emoji import Judges, load_judges
from expunge.evaluation.suites.pairs import halves, text
from expunge.models.emoji import catalog
from expunge.models.emoji.vocabulary import Catalog


def wilson(hits: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % Wilson interval of hits out of n."""
    share, square = hits / n, z * z
    middle = (share + square / (2 * n)) / (1 + square / n)
    half = z * math.sqrt(share * (1 - share) / n + square / (4 * n * n)) / (1 + square / n)
    return middle - half, middle + half


def load(folder: Path, device: str) -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline.from_pretrained(
        folder, torch_dtype=torch.float32, safety_checker=None
    )
    pipe.set_progress_bar_config(disable=True)
    prepare(pipe.unet, device)
    prepare(pipe.vae, device)
    return pipe.to(device)


def draw(
    pipe: StableDiffusionPipeline,
    prompts: list[str],
    seeds: list[int],
    args: argparse.Namespace,
    width: int = SIZE,
) -> list[Image.Image]:
    """One image per prompt and seed; the noise depends on the seed alone."""
    noise = [
        torch.randn(4, 16, width // 4, generator=torch.Generator().manual_seed(seed))
        for seed in seeds
    ]
    images: list[Image.Image] = pipe(
        prompts,
        latents=torch.stack(noise).to(args.device),
        height=SIZE,
        width=width,
        num_inference_steps=args.steps,
        guidance_scale=args.guidance,
    ).images
    return images


def rate(hits: int, n: int) -> dict[str, Any]:
    low, high = wilson(hits, n)
    return {"hits": hits, "n": n, "rate": hits / n, "wilson_95": [low, high]}


@dataclass(frozen=True)
class Job:
    """A prompt, the numbers of the object and the style it names, and the seed of its noise."""

    prompt: str
    object: int
    style: int
    seed: int


@dataclass(frozen=True)
class Pair:
    """A prompt for two things, the numbers of both and of the style, and the seed of its noise."""

    prompt: str
    first: int
    second: int
    style: int
    seed: int


def random_pairs(names: Catalog, without: LeftOut, count: int) -> list[Pair]:
    """Pairs of different things that were seen, in styles that were seen."""
    generator = torch.Generator().manual_seed(0)
    things, styles = without.kept_objects, without.kept_styles
    found = []
    for seed in range(count):
        first, second = (
            things[i] for i in torch.randperm(len(things), generator=generator)[:2].tolist()
        )
        style = styles[int(torch.randint(len(styles), (), generator=generator))]
        one, other = (names.objects[number].name for number in (first, second))
        prompt = text(one, other, names.styles[style].name)
        found.append(Pair(prompt, first, second, style, seed))
    return found


def score_pairs(
    pipe: StableDiffusionPipeline, judges: Judges, pairs: list[Pair], args: argparse.Namespace
) -> tuple[dict[str, Any], list[Image.Image]]:
    """How often each half shows what it should, both do, and they are the other way round."""
    images = pictures(pipe, pairs, args, 2 * SIZE)
    seen = judges.classify(halves(images))
    left, right = seen.objects.chunk(2)
    first = torch.tensor([pair.first for pair in pairs])
    second = torch.tensor([pair.second for pair in pairs])
    styled = seen.styles.view(2, -1) == torch.tensor([pair.style for pair in pairs])
    hits = {
        "left": left == first,
        "right": right == second,
        "both": (left == first) & (right == second),
        "swapped": (left == second) & (right == first),
        "styles": styled.all(0),
    }
    return {name: rate(int(hit.sum()), len(pairs)) for name, hit in hits.items()}, images


def requests(
    names: Catalog, without: LeftOut, args: argparse.Namespace
) -> tuple[list[Job], list[Job]]:
    """What was seen; then an object or a style that wasn't seen, with one that was."""
    jobs = [
        Job(prompt, *divmod(index, len(names.styles)), seed)
        for seed in range(args.seeds)
        for index, (prompt, _, _) in enumerate(names.prompts(args.template))
        if (index + seed) % args.every == 0
    ]
    things, styles = set(without.kept_objects), set(without.kept_styles)
    seen = [(job.object in things) + (job.style in styles) for job in jobs]
    known, half = (
        [job for job, count in zip(jobs, seen, strict=True) if count == wanted] for wanted in (2, 1)
    )
    return known, half


def pictures(
    pipe: StableDiffusionPipeline,
    jobs: Sequence[Job | Pair],
    args: argparse.Namespace,
    width: int = SIZE,
) -> list[Image.Image]:
    images: list[Image.Image] = []
    for start in range(0, len(jobs), args.batch):
        part = jobs[start : start + args.batch]
        images += draw(pipe, [job.prompt for job in part], [job.seed for job in part], args, width)
    return images


def score(
    pipe: StableDiffusionPipeline, judges: Judges, jobs: list[Job], args: argparse.Namespace
) -> tuple[dict[str, Any], list[Image.Image]]:
    began = time.perf_counter()
    images = pictures(pipe, jobs, args)
    seconds = (time.perf_counter() - began) / len(jobs)
    seen = judges.classify(images)
    things = seen.objects == torch.tensor([job.object for job in jobs])
    styles = seen.styles == torch.tensor([job.style for job in jobs])
    missed = Counter(
        judges.objects[job.object]
        for job, hit in zip(jobs, things.tolist(), strict=True)
        if not hit
    )
    by_style: dict[str, list[bool]] = {}
    for job, styled in zip(jobs, styles.tolist(), strict=True):
        by_style.setdefault(judges.styles[job.style], []).append(styled)
    result = {
        "steps": args.steps,
        "guidance": args.guidance,
        "objects": rate(int(things.sum()), len(jobs)),
        "styles": rate(int(styles.sum()), len(jobs)),
        "both": rate(int((things & styles).sum()), len(jobs)),
        "nothing": rate(int((seen.objects == -1).sum()), len(jobs)),
        "clip_score": judges.clip_score(images, [job.prompt for job in jobs]).mean().item(),
        "seconds_per_image": seconds,
        "style_rates": {name: sum(hits) / len(hits) for name, hits in by_style.items()},
        "missed_objects": dict(sorted(missed.items())),
    }
    return result, images


def seen_instead(
    pipe: StableDiffusionPipeline,
    judges: Judges,
    jobs: list[Job],
    without: LeftOut,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """For each name that the model never saw: how often it is drawn all the same, and what else.

    A style is asked for with objects that were seen, an object in styles that were seen.
    """
    result: dict[str, Any] = {}
    for name in sorted(without.objects | without.styles):
        a_style = name in without.styles
        names = judges.styles if a_style else judges.objects
        number = names.index(name)
        asked = [job for job in jobs if (job.style if a_style else job.object) == number]
        if not asked:  # with --every
            continue
        seen = judges.classify(pictures(pipe, asked, args))
        found = (seen.styles if a_style else seen.objects).tolist()
        counts = Counter("nothing" if one < 0 else names[one] for one in found)
        result[name] = rate(counts[name], len(asked)) | {"seen_as": dict(counts.most_common(5))}
    return result


def grid(images: list[Image.Image], columns: int) -> Image.Image:
    width, height = images[0].size
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    for index, image in enumerate(images):
        sheet.paste(image, (index % columns * width, index // columns * height))
    return sheet


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--pipe", type=Path, required=True)
    options.add_argument("--judges", type=Path, required=True)
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--every", type=int, default=1, help="take every so many prompts")
    options.add_argument("--steps", type=int, default=20)
    options.add_argument("--guidance", type=float, default=4.0)
    options.add_argument("--batch", type=int, default=52)
    options.add_argument("--template", default="{object}, {style} style")
    options.add_argument("--json", type=Path)
    options.add_argument("--png", type=Path)
    options.add_argument("--pairs", type=int, default=0, help="random pairs to draw as well")
    options.add_argument("--pairs-png", type=Path)
    args = options.parse_args()
    run = settings(args)
    pipe, judges, names = load(args.pipe, run.device), load_judges(args.judges), catalog()
    without = LeftOut.read(args.pipe)
    kept, half = requests(names, without, args)
    result, images = score(pipe, judges, kept, args)
    if without:
        result["never_seen"] = seen_instead(pipe, judges, half, without, args)
    if args.pairs:
        pairs = random_pairs(names, without, args.pairs)
        result["pairs"], paired = score_pairs(pipe, judges, pairs, args)
    print(json.dumps(result, indent=1))
    if args.json:
        write_json(args.json, result)
    if args.png:
        write(args.png, lambda path: grid(images, 26).save(path, "PNG"))
    if args.pairs and args.pairs_png:
        write(args.pairs_png, lambda path: grid(paired, 13).save(path, "PNG"))


if __name__ == "__main__":
    main()
