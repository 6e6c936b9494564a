"""The two shapes of a published method: one that solves, one that trains."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from expunge.concepts import Policy
from expunge.edits.payloads import Payload
from expunge.models import Model

if TYPE_CHECKING:
    from expunge.training.student import Student

Fidelity = Literal["original", "corrected"]


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


@runtime_checkable
class Solves(Protocol):
    """A closed form: from a model and a policy straight to the change."""

    def solve(self, model: Model, policy: Policy, seed: int) -> Payload: ...


@runtime_checkable
class Trains(Protocol):
    """Gradient descent: the loop owns devices, precision, checkpoints, progress and seeds."""

    iterations: int
    lr: float

    def parameters(self, model: Model) -> tuple[str, ...]:
        """Names of the parameters that are trained."""
        ...

    def batches(
        self, model: Model, policy: Policy, student: "Student", seed: int, start: int
    ) -> Iterator[Mapping[str, Tensor]]:
        """The batch of every step from ``start`` on, the same whatever came before."""
        ...

    def loss(self, student: "Student", batch: Mapping[str, Tensor]) -> Tensor:
        """The scalar to minimise."""
        ...
