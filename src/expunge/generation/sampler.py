"""Sampler settings, and the diffusers scheduler that they stand for."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import diffusers
from pydantic import BaseModel, ConfigDict, Field

from expunge.errors import ExpungeError

SchedulerName = Literal["ddim", "pndm", "lms", "euler", "dpm++", "native"]

_CLASSES: Mapping[str, str] = {
    "ddim": "DDIMScheduler",
    "pndm": "PNDMScheduler",
    "lms": "LMSDiscreteScheduler",
    "euler": "EulerDiscreteScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
}


class Sampler(BaseModel):
    """How noise becomes a picture; the defaults suit the bundled model."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    scheduler: SchedulerName = "ddim"
    """``native`` is the model's own; the others take its noise schedule."""
    steps: Annotated[int, Field(ge=1)] = 20
    """Denoising steps; 50 are usual for Stable Diffusion."""
    guidance_scale: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 4.0
    """Classifier-free guidance where a prompt has no own; 1 is none, 7.5 is usual."""

    def build(self, native: Any) -> Any:
        """A fresh scheduler with its timesteps set, from the model's own (``native``).

        Raises:
            ExpungeError: there are more steps than the model has timesteps.
        """
        config = native.config
        if self.steps > config.num_train_timesteps:
            raise ExpungeError(
                f"{self.steps} steps: the model has only {config.num_train_timesteps} timesteps"
            )
        kind = getattr(diffusers, _CLASSES[self.scheduler]) if self.scheduler in _CLASSES else None
        # Without this entry DDIM clips to [-1, 1], which is meant for pixels, not for latents.
        options = {"clip_sample": False} if self.scheduler == "ddim" else {}
        scheduler = (kind or type(native)).from_config(config, **options)
        scheduler.set_timesteps(self.steps)
        return scheduler
