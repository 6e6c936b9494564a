"""What an edit stores: how each weight changes, in the smallest exact form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self, TypeVar, runtime_checkable

import torch
from torch import Tensor

from expunge.edits.ridge import Ridge, joint
from expunge.errors import ExpungeError
from expunge.tensors import Selection


class Payload(Protocol):
    """What an edit stores: a change of weights (``Change``), of modules' outputs (``Gate``), or of
    the denoiser's predictions (``Guard``)."""

    form: ClassVar[str]

    @property
    def reads_text(self) -> bool:
        """Whether it holds numbers of the text encoder, and is wrong with another one."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that it changes, or the weights of the modules that it acts on."""
        ...

    def tensors(self) -> Mapping[str, Tensor]:
        """Everything but the names, for a file."""
        ...

    @classmethod
    def of(cls, names: tuple[str, ...], tensors: Mapping[str, Tensor]) -> Self:
        """The payload whose ``tensors()`` these are.

        Raises:
            KeyError: a tensor is missing.
        """
        ...


@runtime_checkable
class Change(Payload, Protocol):
    """A change of named parameters that can be computed from their base values."""

    def change(self, name: str, weight: Tensor) -> Tensor:
        """What is added to a base ``weight``: a new tensor of its shape in float64."""
        ...

    def low_rank(self, name: str, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The change of a matrix as factors of ``up @ down``: ``[out, rank]``, ``[rank, in]``."""
        ...


@dataclass(frozen=True, eq=False)
class SharedMatrix:
    """Every matrix ``W`` becomes ``W (I + left^T right)``; both factors ``[rows, width]``."""

    form: ClassVar[str] = "shared_matrix"
    reads_text: ClassVar[bool] = True
    names: tuple[str, ...]
    left: Tensor
    right: Tensor

    def change(self, name: str, weight: Tensor) -> Tensor:
        up, down = self.low_rank(name, weight)
        return up @ down

    def low_rank(self, name: str, weight: Tensor) -> tuple[Tensor, Tensor]:
        return weight.double() @ self.left.T.to(weight.device), self.right.to(weight.device)

    def tensors(self) -> dict[str, Tensor]:
        return {"left": self.left, "right": self.right}

    @classmethod
    def of(cls, names: tuple[str, ...], tensors: Mapping[str, Tensor]) -> "SharedMatrix":
        return cls(names, tensors["left"], tensors["right"])

    @property
    def matrix(self) -> Tensor:
        """``M = I + left^T right``, ``[width, width]`` float64.

        The unedited UNet given ``embeddings @ M.T`` draws what the edited one draws.
        """
        identity = torch.eye(self.left.shape[1], dtype=torch.float64, device=self.left.device)
        return identity + self.left.T @ self.right


@dataclass(frozen=True, eq=False)
class LowRank:
    """Each ``W`` becomes ``W + up @ down``: ``up`` ``[out, rank]``, ``down`` ``[rank, in]``.

    A 1 x 1 convolution ``[out, in, 1, 1]`` counts as a matrix.
    If all parameters share one ``down`` tensor, it is stored once.
    """

    form: ClassVar[str] = "low_rank"
    reads_text: ClassVar[bool] = False
    up: Mapping[str, Tensor]
    down: Mapping[str, Tensor]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.up)

    def change(self, name: str, weight: Tensor) -> Tensor:
        up, down = self.low_rank(name, weight)
        return (up @ down)[:, :, None, None] if weight.ndim == 4 else up @ down

    def low_rank(self, name: str, weight: Tensor) -> tuple[Tensor, Tensor]:
        up, down = self.up[name].to(weight.device), self.down[name].to(weight.device)
        return up.double(), down.double()

    def tensors(self) -> dict[str, Tensor]:
        up = {f"up:{name}": factor for name, factor in self.up.items()}
        first, *rest = self.down.values()
        if rest and all(factor is first for factor in rest):
            return {**up, "down": first}
        return {**up, **{f"down:{name}": factor for name, factor in self.down.items()}}

    @classmethod
    def of(cls, names: tuple[str, ...], tensors: Mapping[str, Tensor]) -> "LowRank":
        if "down" in tensors:
            down = dict.fromkeys(names, tensors["down"])
        else:
            down = {name: tensors[f"down:{name}"] for name in names}
        return cls({name: tensors[f"up:{name}"] for name in names}, down)


@dataclass(frozen=True, eq=False)
class Dense:
    """Each parameter gets its own change, stored whole.

    The changes of a loaded edit stay in its file; each is read whenever it is needed.
    """

    form: ClassVar[str] = "dense"
    reads_text: ClassVar[bool] = False
    changes: Mapping[str, Tensor]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.changes)

    def change(self, name: str, weight: Tensor) -> Tensor:
        return self.changes[name].to(weight.device, torch.float64, copy=True)

    def low_rank(self, name: str, weight: Tensor) -> tuple[Tensor, Tensor]:
        change = self.change(name, weight)
        if change.ndim != 2:
            raise ExpungeError(f"{name}: its change isn't that of a matrix and has no factors")
        return change, torch.eye(change.shape[1], dtype=torch.float64, device=change.device)

    def tensors(self) -> Mapping[str, Tensor]:
        return self.changes

    @classmethod
    def of(cls, names: tuple[str, ...], tensors: Mapping[str, Tensor]) -> "Dense":
        return cls(Selection(tensors, {name: name for name in names}))


@dataclass(frozen=True, eq=False)
class Sum:
    """Several changes of the same parameters, added up; each is computed from the base weights."""

    form: ClassVar[str] = "sum"
    parts: tuple[Change, ...]

    def __post_init__(self) -> None:
        if not self.parts or any(set(part.names) != set(self.names) for part in self.parts):
            raise ExpungeError("the parts of a sum must change the same parameters")

    @property
    def reads_text(self) -> bool:
        return any(part.reads_text for part in self.parts)

    @property
    def names(self) -> tuple[str, ...]:
        return self.parts[0].names

    def change(self, name: str, weight: Tensor) -> Tensor:
        return torch.stack([part.change(name, weight) for part in self.parts]).sum(0)

    def low_rank(self, name: str, weight: Tensor) -> tuple[Tensor, Tensor]:
        up, down = zip(*(part.low_rank(name, weight) for part in self.parts), strict=True)
        return torch.cat(up, 1), torch.cat(down)

    def tensors(self) -> dict[str, Tensor]:
        return {
            f"{index}:{part.form}:{key}": tensor
            for index, part in enumerate(self.parts)
            for key, tensor in part.tensors().items()
        }

    @classmethod
    def of(cls, names: tuple[str, ...], tensors: Mapping[str, Tensor]) -> "Sum":
        forms: dict[int, str] = {}
        own: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            index, _, place = key.partition(":")
            if not index.isdigit():
                raise ExpungeError(f"{key!r} is of no part of the sum; the file is damaged")
            form, _, rest = place.partition(":")
            forms[int(index)] = form
            own.setdefault(int(index), {})[rest] = tensor
        return cls(tuple(stored(CHANGES, forms[i], names, own[i]) for i in sorted(forms)))


def together(payloads: Sequence[Payload]) -> tuple[Change, ...]:
    """The changes among the payloads, with all ridge systems of the same matrices made one."""
    changes = [payload for payload in payloads if isinstance(payload, Change)]
    systems = [change for change in changes if isinstance(change, Ridge)]
    return (*joint(systems), *(change for change in changes if not isinstance(change, Ridge)))


CHANGES: Mapping[str, type[Change]] = {
    kind.form: kind for kind in (SharedMatrix, Ridge, LowRank, Dense, Sum)
}
"""The kinds of change that a file may hold, by form."""

Stored = TypeVar("Stored", bound=Payload)


def stored(
    kinds: Mapping[str, type[Stored]],
    form: str,
    names: tuple[str, ...],
    tensors: Mapping[str, Tensor],
) -> Stored:
    """The payload whose ``tensors()`` these are, one of ``kinds``.

    Raises:
        ExpungeError: the form is unknown or a tensor is missing.
    """
    if form not in kinds:
        raise ExpungeError(f"unknown payload {form!r}; this edit needs a newer version of expunge")
    try:
        return kinds[form].of(names, tensors)
    except KeyError as error:
        raise ExpungeError(f"the edit lacks the tensor {error}; the file is damaged") from None
