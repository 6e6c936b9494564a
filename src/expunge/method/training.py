"""Settings that trainings share: learning-rate schedule, passes of the UNet, trained weights."""

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import BaseModel, Field

from expunge.concepts import Policy
from expunge.errors import ExpungeError
from expunge.method.base import Fixed, GradientPlan, Trained
from expunge.method.student import Student
from expunge.models import Model

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR


class LearningRateSchedule(BaseModel):
    """A schedule of the learning rate."""

    lr_schedule: str = "constant"
    """Name of a schedule in ``diffusers.optimization``, e.g. cosine."""
    lr_warmup: int = Field(0, ge=0)
    """Warm-up steps, for schedules that warm up."""
    lr_cycles: int = Field(1, ge=1)
    """Number of cycles, for schedules that restart."""

    def pace(self, optimizer: "Optimizer", steps: int) -> "LambdaLR":
        """The learning rate of each step, as a factor of ``lr``.

        Raises:
            ExpungeError: there is no such schedule.
        """
        from diffusers.optimization import get_scheduler

        try:
            made: LambdaLR = get_scheduler(
                self.lr_schedule,
                optimizer,
                num_warmup_steps=self.lr_warmup,
                num_training_steps=steps,
                num_cycles=self.lr_cycles,
            )
            return made
        except ValueError as error:
            raise ExpungeError(f"lr_schedule: {error}") from None


class DenoiserTraining(BaseModel):
    """How the UNet's gradients are computed."""

    gradients: Literal["reset", "cumulative"] = "reset"
    """``cumulative`` never resets the gradient: each step adds to all previous ones, as in several
    released programs."""
    precision: Literal["model", "bf16"] = "model"
    """Precision of the UNet's passes; the trained weights are always float32."""
    gradient_checkpointing: bool = False
    """Recompute the UNet's activations instead of storing them: less memory, more time."""

    @property
    def gradient_plan(self) -> GradientPlan:
        """How the gradients of a step are computed."""
        return GradientPlan(
            half=self.precision == "bf16",
            checkpointing=self.gradient_checkpointing,
            cumulative=self.gradients == "cumulative",
        )


class TrainedWeights(DenoiserTraining, LearningRateSchedule, Trained[Student]):
    """Training of parameters of the UNet, or of low-rank changes of them."""

    released_fixed: ClassVar[Fixed] = {
        "rank": (0, "the released programs train whole parameters"),
    }

    rank: int = Field(0, ge=0)
    """Rank of the change of each matrix (LoRA); 0 trains whole parameters."""

    @abstractmethod
    def parameters(self, model: Model) -> tuple[str, ...]:
        """The names of the parameters to train."""

    def student(self, model: Model, policy: Policy, seed: int) -> Student:
        return Student(model, self.parameters(model), rank=self.rank, seed=seed)
