"""Sampler settings: what a user says of drawing, and what the model says of the rest."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from expunge.models import Model
from expunge.models.sampling import Sampling, scheduler_name

SchedulerName = Literal["ddim", "pndm", "lms", "euler", "dpm++", "native"]


class Sampler(BaseModel):
    """How noise becomes a picture; what isn't given is as the model is usually drawn."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    scheduler: SchedulerName | None = None
    """Scheduler of the denoising; "native" is the model's own, the others take its noise
    schedule."""
    steps: Annotated[int, Field(ge=1)] | None = None
    """Denoising steps."""
    guidance_scale: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = None
    """Scale of classifier-free guidance for prompts without their own; 1 is none."""

    @classmethod
    def of(cls, model: Model, sampler: "Sampler | None" = None) -> "Sampler":
        """A sampler with the gaps filled in by the model; this is what records hold."""
        return cls.model_validate((sampler or cls()).sampling(model)._asdict())

    def sampling(self, model: Model) -> Sampling:
        """How this model is drawn."""
        return model.usual_sampling._replace(**self.model_dump(exclude_none=True))

    def record(self, model: Model) -> dict[str, Any]:
        """The settings that a model is drawn with, and its own scheduler's name if that draws."""
        used, own = self.sampling(model), native_scheduler(model, self)
        return {**used._asdict(), **({"native": own} if own else {})}


def native_scheduler(model: Model, sampler: Sampler) -> str:
    """What ``native`` stands for; "" if another scheduler draws."""
    used = sampler.sampling(model)
    native = used.scheduler == "native"
    return scheduler_name(model.process.scheduler("native", used.steps)) if native else ""
