"""Denoising trajectories: where the latents come from that a trained method learns on."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Noise prediction from latents, timestep and embeddings."""


def ddim(model_scheduler: Any, steps: int) -> Any:
    """A DDIM scheduler with the noise levels of another scheduler, set to ``steps``.

    Timesteps are ``(1000 / steps) j + 1``, the sample is never clipped and the last step ends at
    the first noise level: what LDM's own sampler does, and what SD 1.4's scheduler file says.
    """
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler.from_config(
        model_scheduler.config,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
    )
    scheduler.set_timesteps(steps)
    return scheduler


def native(model_scheduler: Any, steps: int) -> Any:
    """A fresh copy of the pipeline's own scheduler, set to ``steps``."""
    scheduler = type(model_scheduler).from_config(model_scheduler.config)
    scheduler.set_timesteps(steps)
    return scheduler


def guided(
    predict: Predict,
    latents: Tensor,
    timestep: Tensor,
    embeddings: Tensor,
    empty: Tensor,
    guidance_scale: float,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Classifier-free guidance: conditional, unconditional (if evaluated) and guided noise.

    ``latents`` ``[batch, ...]``, ``embeddings`` and ``empty`` ``[batch, tokens, width]``. With
    scale 1 the unconditional branch is not evaluated.
    """
    if guidance_scale == 1:
        conditional = predict(latents, timestep, embeddings)
        return conditional, None, conditional
    both = predict(
        torch.cat([latents, latents]), timestep.repeat(2), torch.cat([empty, embeddings])
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
    predict: Predict,
    scheduler: Any,
    latents: Tensor,
    embeddings: Tensor,
    empty: Tensor,
    *,
    guidance_scale: float,
    timesteps: Sequence[Tensor],
) -> Iterator[Step]:
    """Walk down ``timesteps`` from ``latents``, drawn as the scheduler wants its first ones."""
    for timestep in timesteps:
        batch = timestep.to(latents.device).expand(len(latents))
        scaled = scheduler.scale_model_input(latents, timestep)
        conditional, unconditional, direction = guided(
            predict, scaled, batch, embeddings, empty, guidance_scale
        )
        after = scheduler.step(direction, timestep, latents, return_dict=False)[0]
        yield Step(batch, latents, conditional, unconditional, after)
        latents = after
