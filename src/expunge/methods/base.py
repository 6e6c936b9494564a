"""The two shapes of a published method: one that solves, one that trains."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from expunge.concepts import Policy
from expunge.edits.edit import Edit
from expunge.edits.payloads import Payload
from expunge.methods.presets import resolved
from expunge.models import Model

if TYPE_CHECKING:
    from expunge.training.run import Run
    from expunge.training.student import Student

Fidelity = Literal["original", "corrected"]
Batch = Mapping[str, Tensor]
"""What one evaluation of a loss needs."""


class Method(BaseModel):
    """A published method: its settings are the fields, its identity the class attributes."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: ClassVar[str]
    title: ClassVar[str]
    year: ClassVar[int]
    url: ClassVar[str]
    shape: ClassVar[Literal["solve", "train"]]

    fidelity: Fidelity = "corrected"
    """``original`` does what the released code does, ``corrected`` what is right."""
    preset: str | None = None
    """Start from these settings, see ``expunge methods NAME``; what else is given goes first."""

    @model_validator(mode="wrap")  # around the subclasses' own: a preset may decide the fidelity
    @classmethod
    def _from_preset(cls, values: Any, build: Callable[[Any], Any]) -> Any:
        return build(resolved(cls, values))


@runtime_checkable
class Solves(Protocol):
    """A closed form: from a model and a policy straight to the change."""

    def solve(self, model: Model, policy: Policy, seed: int) -> Payload: ...


class Trained(Method):
    """Gradient descent: says what is trained, on what, towards what; the loop does the rest."""

    shape: ClassVar[Literal["solve", "train"]] = "train"

    iterations: int = Field(ge=1)
    """Optimiser steps."""
    lr: float = Field(gt=0)
    """Learning rate."""
    optimizer: str = "torch.optim.AdamW"
    """Import path of the optimiser."""
    weight_decay: float = Field(0.0, ge=0)
    """Decay of the trained weights."""
    max_grad_norm: float | None = Field(None, gt=0)
    """Longer gradients are cut to this length."""
    lr_schedule: str = "constant"
    """Name of a schedule of ``diffusers.optimization``, e.g. cosine."""
    lr_warmup: int = Field(0, ge=0)
    """Steps until the learning rate is reached, in the schedules that warm up."""
    accumulation: int = Field(1, ge=1)
    """Batches whose gradients are averaged in one step; several processes share them."""
    gradients: Literal["reset", "cumulative"] = "reset"
    """``cumulative`` adds each step's gradient to all before it, as several programs do."""
    rank: int = Field(0, ge=0)
    """Rank of the trained change of each matrix (LoRA); 0 trains whole parameters."""
    precision: Literal["model", "bf16"] = "model"
    """What the UNet computes in; the trained weights themselves are float32."""
    gradient_checkpointing: bool = False
    """Compute the UNet's activations twice instead of keeping them."""

    @model_validator(mode="after")
    def _trainable(self) -> "Trained":
        if self.rank and self.fidelity == "original":
            raise ValueError("rank: the released programs train whole parameters; leave it at 0")
        return self

    @abstractmethod
    def parameters(self, model: Model) -> tuple[str, ...]:
        """Names of the parameters that are trained."""

    @abstractmethod
    def batches(self, run: "Run", numbers: Iterable[int]) -> Iterator[Batch]:
        """The batches of these numbers; each depends on its number, the seed and the weights."""

    @abstractmethod
    def loss(self, student: "Student", batch: Batch) -> Tensor | Mapping[str, Tensor]:
        """The scalar to minimise, or several by name, of which ``loss`` is the one."""

    def start(self, model: Model, policy: Policy, seed: int) -> Edit | None:
        """The edit that training goes on from, if it isn't the base model."""
        return None

    def groups(self, student: "Student") -> list[dict[str, Any]]:
        """The optimiser's parameter groups."""
        return [{"params": list(student.weights.values())}]

    def finished(self, history: Sequence[Mapping[str, float]]) -> bool:
        """Whether training ends here; ``history`` has what ``loss`` gave in each step."""
        return False
