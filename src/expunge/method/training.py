"""Settings that several trainings share: a schedule, the UNet's passes, whole weights."""

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from expunge.concepts import Policy
from expunge.errors import ExpungeError
from expunge.method.base import Fixed, GradientPlan, Trained
from expunge.method.student import Student
from expunge.models import Model

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR


class LearningRateSchedule(BaseModel):
    """The learning rate follows a schedule."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    lr_schedule: str = "constant"
    """Name of a schedule of ``diffusers.optimization``, e.g. cosine."""
    lr_warmup: int = Field(0, ge=0)
    """Steps until the learning rate is reached, in the schedules that warm up."""
    lr_cycles: int = Field(1, ge=1)
    """Cycles of a schedule that restarts."""

    def pace(self, optimizer: "Optimizer", steps: int) -> "LambdaLR":
        """The learning rate in each of the steps, as a factor of ``lr``.

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
    """Gradients come from passes of the UNet."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    gradients: Literal["reset", "cumulative"] = "reset"
    """``cumulative`` adds each step's gradient to all before it, as several programs do."""
    precision: Literal["model", "bf16"] = "model"
    """What the UNet computes in; the trained weights themselves are float32."""
    gradient_checkpointing: bool = False
    """Compute the UNet's activations twice instead of keeping them."""

    @property
    def gradient_plan(self) -> GradientPlan:
        """How the gradients of a step are computed."""
        return GradientPlan(
            half=self.precision == "bf16",
            checkpointing=self.gradient_checkpointing,
            cumulative=self.gradients == "cumulative",
        )


class TrainedWeights(DenoiserTraining, LearningRateSchedule, Trained[Student]):
    """Trains parameters of the UNet, or low-rank changes of them."""

    released_fixed: ClassVar[Fixed] = {
        "rank": (0, "the released programs train whole parameters"),
    }

    rank: int = Field(0, ge=0)
    """Rank of the trained change of each matrix (LoRA); 0 trains whole parameters."""

    @abstractmethod
    def parameters(self, model: Model) -> tuple[str, ...]:
        """Names of the parameters that are trained."""

    def student(self, model: Model, policy: Policy, seed: int) -> Student:
        return Student(model, self.parameters(model), rank=self.rank, seed=seed)
