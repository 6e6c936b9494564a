"""The two shapes of a published method: one that solves, one that trains."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

from pydantic import ConfigDict, Field, model_validator
from torch import Tensor

from expunge.concepts import Concept, Policy
from expunge.edits.edit import Edit
from expunge.edits.payloads import Change, Payload
from expunge.errors import ExpungeError
from expunge.method.presets import Named, resolved
from expunge.models import Model

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR

    from expunge.method.run import Run
    from expunge.method.student import Student

Fidelity = Literal["original", "corrected"]


class Part(NamedTuple):
    """What a training has made for some of the concepts."""

    concepts: tuple[Concept, ...]
    payload: Payload


Batch = Mapping[str, Any]
"""What one evaluation of a loss needs, tensors and conditions by name."""


class Method(Named):
    """A published method: its settings are the fields, its identity the class attributes."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

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

    def solve(self, model: Model, policy: Policy, seed: int) -> Change: ...


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
    lr_cycles: int = Field(1, ge=1)
    """Cycles of a schedule that restarts."""
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

    def student(self, model: Model, policy: Policy, seed: int, start: Edit | None) -> "Student":
        """What is trained, as it is before the first step."""
        from expunge.method.student import Student

        return Student(model, self.parameters(model), rank=self.rank, seed=seed, start=start)

    def parts(self, student: "Student", policy: Policy) -> Sequence["Part"]:
        """What training has made, as parts that can be taken out again one by one."""
        return [Part(policy.erase, student.payload())]

    def stage(self, step: int) -> int:
        """Which stage a step belongs to; with each the optimiser begins anew."""
        return 0

    def enter(self, student: "Student", stage: int, seed: int) -> None:
        """What a stage begins with."""

    def pace(self, optimizer: "Optimizer") -> "LambdaLR":
        """The learning rate in each step, as a factor of ``lr``."""
        from diffusers.optimization import get_scheduler

        try:
            made: LambdaLR = get_scheduler(
                self.lr_schedule,
                optimizer,
                num_warmup_steps=self.lr_warmup,
                num_training_steps=self.iterations,
                num_cycles=self.lr_cycles,
            )
            return made
        except ValueError as error:
            raise ExpungeError(f"lr_schedule: {error}") from None

    def start(self, model: Model, policy: Policy, seed: int) -> Edit | None:
        """The edit that training goes on from, if it isn't the base model."""
        return None

    def groups(self, student: "Student") -> list[dict[str, Any]]:
        """The optimiser's parameter groups."""
        return [{"params": list(student.weights.values())}]

    def finished(self, history: Sequence[Mapping[str, float]]) -> bool:
        """Whether training ends here; ``history`` has what ``loss`` gave in each step."""
        return False
