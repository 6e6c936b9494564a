"""What an edit stores: how each weight changes, in the smallest exact form."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from expunge.errors import ExpungeError


class Payload(Protocol):
    """A change of named parameters that can be computed from their base values."""

    form: ClassVar[str]

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that change."""
        ...

    def change(self, name: str, weight: Tensor) -> Tensor:
        """What is added to a base ``weight``, in float64 and of its shape."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Everything but the names, for a file."""
        ...


@dataclass(frozen=True, eq=False)
class SharedMatrix:
    """Every matrix ``W`` becomes ``W (I + left^T right)``; both factors ``[rows, width]``."""

    form: ClassVar[str] = "shared_matrix"
    names: tuple[str, ...]
    left: Tensor
    right: Tensor

    def change(self, name: str, weight: Tensor) -> Tensor:
        left, right = self.left.to(weight.device), self.right.to(weight.device)
        return (weight.double() @ left.T) @ right

    def tensors(self) -> dict[str, Tensor]:
        return {"left": self.left, "right": self.right}

    @property
    def matrix(self) -> Tensor:
        """``M = I + left^T right``, ``[width, width]`` float64.

        The unedited UNet given ``embeddings @ M.T`` draws what the edited one draws.
        """
        identity = torch.eye(self.left.shape[1], dtype=torch.float64, device=self.left.device)
        return identity + self.left.T @ self.right


@dataclass(frozen=True, eq=False)
class LowRank:
    """Each ``W`` becomes ``W + up @ down``: ``up`` ``[out, rank]``, ``down`` ``[rank, in]``."""

    form: ClassVar[str] = "low_rank"
    up: Mapping[str, Tensor]
    down: Mapping[str, Tensor]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.up)

    def change(self, name: str, weight: Tensor) -> Tensor:
        up, down = self.up[name].to(weight.device), self.down[name].to(weight.device)
        return up.double() @ down.double()

    def tensors(self) -> dict[str, Tensor]:
        return {
            f"{side}:{name}": factors[name]
            for side, factors in (("up", self.up), ("down", self.down))
            for name in factors
        }


@dataclass(frozen=True, eq=False)
class Dense:
    """Each parameter gets its own change, stored whole."""

    form: ClassVar[str] = "dense"
    changes: Mapping[str, Tensor]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.changes)

    def change(self, name: str, weight: Tensor) -> Tensor:
        return self.changes[name].to(weight.device, torch.float64)

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.changes)


def from_tensors(form: str, names: tuple[str, ...], tensors: Mapping[str, Tensor]) -> Payload:
    """The payload that ``tensors()`` was taken from.

    Raises:
        ExpungeError: the form is unknown or a tensor is missing.
    """
    try:
        if form == SharedMatrix.form:
            return SharedMatrix(names, tensors["left"], tensors["right"])
        if form == LowRank.form:
            return LowRank(
                {name: tensors[f"up:{name}"] for name in names},
                {name: tensors[f"down:{name}"] for name in names},
            )
        if form == Dense.form:
            return Dense({name: tensors[name] for name in names})
    except KeyError as error:
        raise ExpungeError(f"the edit lacks the tensor {error}; the file is damaged") from None
    raise ExpungeError(f"unknown payload {form!r}; this edit needs a newer version of expunge")
