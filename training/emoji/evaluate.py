"""Measure a pipeline with the judges: every object in every style, several seeds."""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from common import parser, prepare, settings, write
from diffusers import StableDiffusionPipeline
from PIL import Image

from expunge.detectors.emoji import Judges, load_judges
from expunge.models.emoji import catalog


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
    pipe: StableDiffusionPipeline, prompts: list[str], seeds: list[int], args: argparse.Namespace
) -> list[Image.Image]:
    """One image per prompt and seed; the noise depends on the seed alone."""
    noise = [
        torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in seeds
    ]
    images: list[Image.Image] = pipe(
        prompts,
        latents=torch.stack(noise).to(args.device),
        num_inference_steps=args.steps,
        guidance_scale=args.guidance,
    ).images
    return images


def rate(hits: int, n: int) -> dict[str, Any]:
    low, high = wilson(hits, n)
    return {"hits": hits, "n": n, "rate": hits / n, "wilson_95": [low, high]}


def score(
    pipe: StableDiffusionPipeline, judges: Judges, jobs: list[tuple[str, int, int, int]], args: Any
) -> tuple[dict[str, Any], list[Image.Image]]:
    """jobs are (prompt, object, style, seed)."""
    images: list[Image.Image] = []
    began = time.perf_counter()
    for start in range(0, len(jobs), args.batch):
        part = jobs[start : start + args.batch]
        images += draw(pipe, [job[0] for job in part], [job[3] for job in part], args)
    seconds = (time.perf_counter() - began) / len(jobs)
    seen = judges.classify(images)
    things = seen.objects == torch.tensor([job[1] for job in jobs])
    styles = seen.styles == torch.tensor([job[2] for job in jobs])
    missed: dict[str, int] = {}
    by_style: dict[str, list[bool]] = {}
    for job, hit, styled in zip(jobs, things.tolist(), styles.tolist(), strict=True):
        missed[judges.objects[job[1]]] = missed.get(judges.objects[job[1]], 0) + (not hit)
        by_style.setdefault(judges.styles[job[2]], []).append(styled)
    result = {
        "steps": args.steps,
        "guidance": args.guidance,
        "objects": rate(int(things.sum()), len(jobs)),
        "styles": rate(int(styles.sum()), len(jobs)),
        "both": rate(int((things & styles).sum()), len(jobs)),
        "nothing": rate(int((seen.objects == -1).sum()), len(jobs)),
        "clip_score": judges.clip_score(images, [job[0] for job in jobs]).mean().item(),
        "seconds_per_image": seconds,
        "style_rates": {name: sum(hits) / len(hits) for name, hits in by_style.items()},
        "missed_objects": {name: count for name, count in sorted(missed.items()) if count},
    }
    return result, images


def grid(images: list[Image.Image], columns: int) -> Image.Image:
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * 64, rows * 64), "white")
    for index, image in enumerate(images):
        sheet.paste(image, (index % columns * 64, index // columns * 64))
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
    args = options.parse_args()
    run = settings(args)
    pipe, judges, names = load(args.pipe, run.device), load_judges(args.judges), catalog()
    styles = len(names.styles)
    jobs = [
        (prompt, index // styles, index % styles, seed)
        for seed in range(args.seeds)
        for index, (prompt, _, _) in enumerate(names.prompts(args.template))
        if (index + seed) % args.every == 0
    ]
    result, images = score(pipe, judges, jobs, args)
    text = json.dumps(result, indent=1)
    print(text)
    if args.json:
        write(args.json, lambda path: path.write_text(text + "\n", encoding="utf-8"))
    if args.png:
        write(args.png, lambda path: grid(images, 26).save(path, "PNG"))


if __name__ == "__main__":
    main()
