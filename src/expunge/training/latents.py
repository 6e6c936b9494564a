"""Latents at chosen points of the base model's trajectories."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from expunge.method.run import Run
from expunge.models import Model
from expunge.training.cache import cached
from expunge.training.trajectories import Timetable, ddim, denoise, drawn_in_blocks


class TrajectoryPoint(NamedTuple):
    """Where a step of a trajectory starts; ``step`` may also be ``steps``, where the last ends."""

    trajectory: int
    step: int


def latents_at(
    run: Run,
    name: str,
    prompts: Sequence[str],
    seeds: Sequence[int],
    points: Sequence[TrajectoryPoint],
    *,
    steps: int,
    guidance_scale: float,
    scheduler: Timetable = ddim,
) -> Tensor:
    """Latents at some points of the base model's trajectories, ``[points, channels, h, w]``.

    No trajectory is drawn beyond its last point, and those without a point aren't drawn at all.
    Trajectories of about the same length are drawn side by side. Processes share them and a file
    keeps them as in ``trajectories``, whose arguments these are.
    """
    recipe = {
        "prompts": list(prompts), "seeds": list(seeds), "places": [list(at) for at in points],
        "steps": steps, "guidance_scale": guidance_scale, "scheduler": scheduler.__name__,
    }  # fmt: skip
    index = {point: number for number, point in enumerate(sorted(set(points)))}
    last = {point.trajectory: point.step for point in index}

    def wanted_latents(block: Sequence[int], noise: Tensor) -> dict[int, list[Tensor]]:
        found: dict[int, list[Tensor]] = {}
        texts = [prompts[number] for number in block]
        timetable = scheduler(run.model.process, steps)
        length = last[block[-1]]
        walk = latents_along(run.model, timetable, noise, texts, length, guidance_scale)
        for step, latents in enumerate(walk):
            at = [(row, index.get(TrajectoryPoint(n, step))) for row, n in enumerate(block)]
            found |= {number: [latents[row].clone()] for row, number in at if number is not None}
        return found

    def drawn() -> dict[str, Tensor]:
        shortest_first = sorted(last, key=lambda number: (last[number], number))
        whole = drawn_in_blocks(run, name, seeds, shortest_first, wanted_latents)
        return {"latents": torch.stack([whole[index[point]][0] for point in points])}

    return cached(run, name, recipe, drawn)["latents"]


def latents_along(
    model: Model,
    scheduler: Any,
    noise: Tensor,
    prompts: Sequence[str],
    length: int,
    guidance_scale: float,
) -> Iterator[Tensor]:
    """Latents where the steps 0, 1, ... up to ``length`` start, ``[prompts, ...]`` each."""
    latents: Tensor = noise * scheduler.init_noise_sigma
    yield latents
    for step in denoise(
        model.predict,
        scheduler,
        latents,
        model.condition(prompts),
        model.condition([""]).expand(len(prompts)),
        guidance_scale=guidance_scale,
        timesteps=scheduler.timesteps[:length],
    ):
        yield step.after
