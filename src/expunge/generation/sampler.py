"""Sampler settings, and the diffusers scheduler for them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from expunge.models import Process

SchedulerName = Literal["ddim", "pndm", "lms", "euler", "dpm++", "native"]


class Sampler(BaseModel):
    """How noise becomes a picture; the defaults suit the bundled model."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    scheduler: SchedulerName = "ddim"
    """``native`` is the model's own; the others take its noise schedule."""
    steps: Annotated[int, Field(ge=1)] = 20
    """Denoising steps; 50 are usual for Stable Diffusion."""
    guidance_scale: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 4.0
    """Classifier-free guidance for prompts without their own; 1 is none, 7.5 is usual."""

    def build(self, process: Process) -> Any:
        """A fresh diffusers scheduler with its timesteps set.

        Raises:
            ExpungeError: there are more steps than the model has timesteps, or its process has no
                such scheduler.
        """
        return process.scheduler(self.scheduler, self.steps)
