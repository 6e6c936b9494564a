"""Denoising trajectories, which give trained methods their latents."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from expunge.method.run import Run
from expunge.models import Condition, Model, Process
from expunge.models.calls import Answer
from expunge.progress import track
from expunge.training.cache import cached

BLOCK = 16
"""Trajectories that are drawn side by side."""

Timetable = Callable[[Process, int], Any]
"""A diffusers scheduler with the noise levels of a process, set to a number of steps."""


def ddim(process: Process, steps: int) -> Any:
    """A DDIM scheduler with the noise levels of a process, set to ``steps``.

    Timesteps are ``(1000 / steps) j + 1``, the sample is never clipped and the last step ends at
    the first noise level: what LDM's own sampler does, and what SD 1.4's scheduler file says.
    """
    return process.scheduler(
        "ddim", steps, set_alpha_to_one=False, steps_offset=1, timestep_spacing="leading"
    )


def native(process: Process, steps: int) -> Any:
    """A fresh copy of the pipeline's own scheduler, set to ``steps``."""
    return process.scheduler("native", steps)


def guided(
    predict: Answer,
    latents: Tensor,
    timestep: Tensor,
    condition: Condition,
    empty: Condition,
    guidance_scale: float,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Classifier-free guidance: conditional, unconditional (if evaluated) and guided answers.

    Latents are ``[batch, ...]``; ``condition`` and ``empty`` have a row each. With scale 1 the
    unconditional branch is not evaluated.
    """
    if guidance_scale == 1:
        conditional = predict(latents, timestep, condition)
        return conditional, None, conditional
    both = predict(
        torch.cat([latents, latents]), timestep.repeat(2), Condition.cat([empty, condition])
    )
    unconditional, conditional = both.chunk(2)
    return (
        conditional,
        unconditional,
        unconditional + guidance_scale * (conditional - unconditional),
    )


class Step(NamedTuple):
    """One step of a trajectory; tensors are ``[batch, channels, height, width]``."""

    timestep: Tensor
    """``[batch]``."""
    latents: Tensor
    """Where the step starts."""
    conditional: Tensor
    """The prediction for the prompt there."""
    unconditional: Tensor | None
    """The prediction for the empty prompt there, if guidance evaluated it."""
    after: Tensor
    """Where the step ends."""


@torch.no_grad()
def denoise(
    predict: Answer,
    scheduler: Any,
    latents: Tensor,
    condition: Condition,
    empty: Condition,
    *,
    guidance_scale: float,
    timesteps: Sequence[Tensor],
) -> Iterator[Step]:
    """Denoise ``latents`` step by step; they must be scaled as the scheduler's first ones."""
    for timestep in timesteps:
        batch = timestep.to(latents.device).expand(len(latents))
        scaled = scheduler.scale_model_input(latents, timestep)
        conditional, unconditional, direction = guided(
            predict, scaled, batch, condition, empty, guidance_scale
        )
        after = scheduler.step(direction, timestep, latents, return_dict=False)[0]
        yield Step(batch, latents, conditional, unconditional, after)
        latents = after


class Trajectories(NamedTuple):
    """Whole trajectories, or the kept steps of them; tensors are ``[prompts, steps, ...]``."""

    latents: Tensor
    """Where each step starts."""
    timesteps: Tensor
    """``[steps]``."""
    conditional: Tensor
    """The prediction for the prompt there."""
    unconditional: Tensor
    """The prediction for the empty prompt there."""
    anchor: Tensor
    """The prediction for the prompt's anchor there."""


def trajectories(
    run: Run,
    name: str,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    anchors: Sequence[str] = (),
    steps: int,
    keep: Sequence[int] | None = None,
    guidance_scale: float,
    latents_only: bool = False,
    scheduler: Timetable = ddim,
) -> Trajectories:
    """Denoise every prompt with the base model, from the noise of its seed.

    Several processes share the prompts. The run's folder keeps the trajectories for when a stopped
    run continues.

    Args:
        run: gives the model, the folder and the processes.
        name: name of the file in the folder.
        prompts: one for each trajectory.
        seeds: one for each trajectory.
        anchors: other prompts to predict for on the way, one for each trajectory; by default the
            empty prompt.
        steps: length of a whole trajectory.
        keep: numbers of the steps to keep; nothing after the last of them is computed.
        guidance_scale: scale of classifier-free guidance.
        latents_only: leave the predictions out.
        scheduler: makes the scheduler.
    """
    kept = list(range(steps) if keep is None else keep)
    recipe = {
        "prompts": list(prompts), "seeds": list(seeds), "anchors": list(anchors),
        "steps": [steps, *kept], "guidance_scale": guidance_scale, "latents_only": latents_only,
        "scheduler": scheduler.__name__,
    }  # fmt: skip

    def kept_steps(block: Sequence[int], noise: Tensor) -> dict[int, list[Tensor]]:
        texts = [prompts[number] for number in block]
        others = [anchors[number] for number in block] if anchors else None
        columns = _kept_steps(
            run.model, scheduler(run.model.process, steps), noise, texts, others,
            kept, guidance_scale, latents_only,
        )  # fmt: skip
        return {number: [column[at] for column in columns] for at, number in enumerate(block)}

    def drawn() -> dict[str, Tensor]:
        whole = drawn_in_blocks(run, name, seeds, range(len(prompts)), kept_steps)
        columns = [
            torch.stack([whole[number][at] for number in range(len(prompts))]) for at in range(4)
        ]
        timesteps = scheduler(run.model.process, steps).timesteps[kept].to(run.model.device)
        return Trajectories(columns[0], timesteps, *columns[1:])._asdict()

    return Trajectories(**cached(run, name, recipe, drawn))


def drawn_in_blocks(
    run: Run,
    name: str,
    seeds: Sequence[int],
    numbers: Sequence[int],
    draw: Callable[[Sequence[int], Tensor], Mapping[int, list[Tensor]]],
) -> Mapping[int, list[Tensor]]:
    """What ``draw`` gives for each of these trajectories; all processes share the work.

    ``draw`` gets the numbers of a block's trajectories and their noise, ``[block, c, h, w]``.
    """
    own: dict[int, list[Tensor]] = {}
    mine = run.own(numbers)
    blocks = [mine[at : at + BLOCK] for at in range(0, len(mine), BLOCK)]
    for block in track(blocks, f"trajectories ({name})", total=len(blocks)):
        own |= draw(block, torch.stack([_noise(run.model, seeds[number]) for number in block]))
    return run.gathered(own)


def _kept_steps(
    model: Model,
    scheduler: Any,
    noise: Tensor,
    prompts: Sequence[str],
    anchors: Sequence[str] | None,
    keep: Sequence[int],
    guidance_scale: float,
    latents_only: bool,
) -> list[Tensor]:
    """Latents and predictions of the kept steps, ``[prompts, steps, ...]`` each."""
    empty = model.condition([""]).expand(len(prompts))
    others = None if anchors is None or not any(anchors) else model.condition(anchors)
    parts: list[list[Tensor]] = []
    walk = denoise(
        model.predict,
        scheduler,
        noise * scheduler.init_noise_sigma,
        model.condition(prompts),
        empty,
        guidance_scale=guidance_scale,
        timesteps=scheduler.timesteps[: max(keep) + 1],
    )
    for number, step in enumerate(walk):
        if number not in keep:
            continue
        row = [step.latents]
        if not latents_only:
            with torch.no_grad():
                scaled = scheduler.scale_model_input(step.latents, step.timestep[0])
                unconditional = step.unconditional
                if unconditional is None:
                    unconditional = model.predict(scaled, step.timestep, empty)
                anchor = unconditional
                if others is not None:
                    anchor = model.predict(scaled, step.timestep, others)
            row += [step.conditional, unconditional, anchor]
        parts.append(row)
    columns = [torch.stack(column, 1) for column in zip(*parts, strict=True)]
    return columns + [noise.new_zeros(len(noise), 0)] * (4 - len(columns))


def _noise(model: Model, seed: int) -> Tensor:
    """Normal noise ``[channels, height, width]``, drawn in float32 on the CPU."""
    noise = torch.randn(model.latent_shape, generator=torch.Generator().manual_seed(seed))
    return noise.to(model.device, model.dtype)
