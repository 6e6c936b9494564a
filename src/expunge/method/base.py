"""The contract between a published method and the code that runs it."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Generic,
    Literal,
    NamedTuple,
    Protocol,
    Self,
    runtime_checkable,
)

from pydantic import ConfigDict, Field, model_validator
from torch import Tensor
from typing_extensions import TypeVar

from expunge.concepts import Concept, Policy
from expunge.edits.payloads import Payload
from expunge.errors import Unsupported
from expunge.method.batch import Batch
from expunge.method.presets import Named, resolved
from expunge.method.run import Run
from expunge.method.student import Student
from expunge.models import Model

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR

Fidelity = Literal["original", "corrected"]

Need = Literal["text", "drawing", "training", "gradients"]
"""What a method needs to run: the text encoder (``text``), pictures or latents that the model draws
first (``drawing``), optimiser steps (``training``), or gradients of the UNet (``gradients``)."""

PolicyPart = Literal["keep", "anchor"]
"""What a policy says beside what is erased: what stays, and what is drawn instead."""

Fixed = Mapping[str, tuple[Any, str]]
"""Settings by name, each with its only value and the reason."""

S = TypeVar("S", bound=Student, default=Student)


class Part(NamedTuple):
    """What a method made for some of the concepts."""

    concepts: tuple[Concept, ...]
    payload: Payload


class Method(Named):
    """A published method: its settings are the fields, its identity the class attributes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: ClassVar[str]
    year: ClassVar[int]
    url: ClassVar[str]
    needs: ClassVar[frozenset[Need]]
    """What it needs to run with its default settings."""
    families: ClassVar[tuple[str, ...]] = ("sd",)
    """The families of models that it is made for and tested on."""
    released: ClassVar[Mapping[str, Any]] = {}
    """Defaults of the released program where they differ; see ``with_released``."""
    released_fixed: ClassVar[Fixed] = {}
    """Settings that the released program can't change."""
    corrected_only: ClassVar[tuple[str, ...]] = ()
    """Settings that the released program doesn't have."""
    original_only: ClassVar[tuple[str, ...]] = ()
    """Settings that only the released program has."""
    released_synonyms: ClassVar[bool] = False
    """Whether the released program erases a concept's synonyms."""

    always_ignored: ClassVar[frozenset[PolicyPart]] = frozenset()
    """What of a policy it has no use for."""
    released_ignored: ClassVar[frozenset[PolicyPart]] = frozenset()
    """What of a policy the released program has no use for."""

    fidelity: Fidelity = "corrected"
    """``original`` does exactly what the released code does; ``corrected`` fixes its faults."""
    preset: str | None = None
    """Start from the settings of this preset; see ``expunge methods NAME``. Settings that you give
    take precedence."""

    @model_validator(mode="wrap")  # around the subclasses' own: a preset may decide the fidelity
    @classmethod
    def _kept_contract(cls, values: Any, build: Callable[[Any], Any]) -> Any:
        values = resolved(cls, values)
        if isinstance(values, Mapping) and values.get("fidelity") == "original":
            values = cls.with_released(values)
        made = build(values)
        made._check_fidelity()
        return made

    @classmethod
    def with_released(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """The settings of an original run: ``values`` on top of the released program's defaults."""
        fixed = {name: value for name, (value, _) in cls.released_fixed.items()}
        return {**fixed, **cls.released, **values}

    def _check_fidelity(self) -> None:
        if self.fidelity == "corrected":
            self.refuse_changed('only with fidelity="original"', *self.original_only)
            return
        self.refuse_changed('only with fidelity="corrected"', *self.corrected_only)
        for name, (value, reason) in self.released_fixed.items():
            if getattr(self, name) != value:
                raise ValueError(f"{name}: {reason}; leave it at {value}")

    def refuse_changed(self, reason: str, *names: str) -> None:
        """Refuse settings that aren't at their defaults.

        Raises:
            ValueError: a setting was changed; the message names it and gives the reason.
        """
        for name in names:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name}: {reason}")

    def check_family(self, model: Model) -> None:
        """Refuse a model of a family that this method isn't made for.

        Raises:
            Unsupported: it is of such a family.
        """
        if model.family not in self.families:
            raise Unsupported(
                f"{self.name} is for {' and '.join(self.families)} models so far, and "
                f"{model.name!r} is {model.family}"
            )

    def erased_prompts(self, policy: Policy) -> Iterable[str]:
        """The prompts that it moves or trains on beside the bare phrases; what is kept is none.

        By default the phrases in their sentences, if the method has any.
        """
        contexts = getattr(self, "contexts", None)
        if contexts is None or self.fidelity == "original":
            return ()
        return [pair.erase for concept in policy.erase for pair in concept.pairs(contexts)]

    def kept_prompts(self, policy: Policy) -> Iterable[str]:
        """The prompts that it keeps; by default the policy's, in their sentences if it has any."""
        contexts = getattr(self, "contexts", None)
        if contexts is None or self.fidelity == "original":
            return policy.kept
        return policy.kept_prompts(contexts)

    @property
    def ignored(self) -> frozenset[PolicyPart]:
        """What of a policy a run with these settings has no use for."""
        released = self.released_ignored if self.fidelity == "original" else frozenset()
        return self.always_ignored | released

    def settled(self, model: Model) -> Self:
        """The same settings, with those read out that depend on the model."""
        return self

    @property
    def needed(self) -> frozenset[Need]:
        """What it needs to run with these settings."""
        return self.needs


@runtime_checkable
class Solves(Protocol):
    """A method in closed form: it computes the payload directly."""

    def solve(self, model: Model, policy: Policy, seed: int) -> Payload: ...


class GradientPlan(NamedTuple):
    """How the gradients of a step are computed."""

    half: bool = False
    """Losses are computed in bfloat16 where torch finds that safe."""
    checkpointing: bool = False
    """The UNet's activations are recomputed instead of stored."""
    cumulative: bool = False
    """Each step adds its gradient to all previous ones."""


class Trained(Method, Generic[S]):
    """A method by gradient descent: it defines student, batches and loss for the training loop."""

    needs: ClassVar[frozenset[Need]] = frozenset({"text", "drawing", "training", "gradients"})

    iterations: int = Field(ge=1)
    """Optimiser steps."""
    lr: float = Field(gt=0)
    """Learning rate."""
    optimizer: str = "torch.optim.AdamW"
    """Import path of the optimiser."""
    weight_decay: float = Field(0.0, ge=0)
    """Decay of the trained weights."""
    max_grad_norm: float | None = Field(None, gt=0)
    """Gradients with a larger norm are scaled down to this norm."""
    accumulation: int = Field(1, ge=1)
    """Number of batches whose gradients are averaged in a step; several processes share them."""

    @abstractmethod
    def student(self, model: Model, policy: Policy, seed: int) -> S:
        """What is trained, as it is before the first step."""

    @abstractmethod
    def batches(self, run: Run[S], numbers: Iterable[int]) -> Iterator[Batch]:
        """The batches of these numbers; each depends on its number, the seed and the weights."""

    @abstractmethod
    def loss(self, student: S, batch: Batch) -> Tensor | Mapping[str, Tensor]:
        """The scalar to minimise; or several scalars by name, with that one as ``loss``."""

    def fewest_steps(self, policy: Policy) -> int:
        """The fewest optimiser steps in which every wording of what is erased can have a turn.

        Here each row of a batch shows one.
        """
        wordings = sum(len(concept.phrases) for concept in policy.erase)
        return -(-wordings // (self.accumulation * getattr(self, "batch_size", 1)))

    def parts(self, student: S, policy: Policy) -> Sequence[Part]:
        """What training made, as parts that can be removed one by one."""
        return [Part(policy.erase, student.payload())]

    def groups(self, student: S) -> list[dict[str, Any]]:
        """The optimiser's parameter groups."""
        return [{"params": list(student.weights.values())}]

    def pace(self, optimizer: "Optimizer", steps: int) -> "LambdaLR":
        """The learning rate of each step, as a factor of ``lr``; here always 1.

        Raises:
            ExpungeError: there is no such schedule.
        """
        from torch.optim.lr_scheduler import LambdaLR

        return LambdaLR(optimizer, lambda step: 1.0)

    @property
    def gradient_plan(self) -> GradientPlan:
        """How the gradients of a step are computed."""
        return GradientPlan()

    def finished(self, history: Sequence[Mapping[str, float]]) -> bool:
        """Whether training ends here; ``history`` has the values of ``loss`` in each step."""
        return False


Begun = TypeVar("Begun", bound=Student, contravariant=True)


@runtime_checkable
class Staged(Protocol[Begun]):
    """A training in stages; each stage begins with a fresh optimiser."""

    def stage(self, step: int) -> int:
        """The number of the stage that a step belongs to."""

    def enter(self, student: Begun, stage: int, seed: int) -> None:
        """Prepare the student for a stage that begins."""
