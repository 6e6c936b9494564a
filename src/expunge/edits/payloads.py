"""What an edit stores: how each weight changes, in the smallest exact form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor
from typing_extensions import Self

from expunge.algebra.ridge import (
    Moved,
    Rows,
    SharedFactors,
    Statistics,
    gram,
    joined,
    shared_factors,
)
from expunge.errors import ExpungeError


class Payload(Protocol):
    """What an edit stores of one change: of weights (``Change``), of outputs (``Gate``), or of
    answers (``Guard``)."""

    form: ClassVar[str]

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that it is about."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Everything but the names, for a file."""
        ...

    @classmethod
    def of(cls, names: tuple[str, ...], tensors: Mapping[str, Tensor]) -> Self:
        """What ``tensors()`` was taken from.

        Raises:
            KeyError: a tensor is missing.
        """
        ...


@runtime_checkable
class Change(Payload, Protocol):
    """A change of named parameters that can be computed from their base values."""

    def change(self, name: str, weight: Tensor) -> Tensor:
        """What is added to a base ``weight``, in float64 and of its shape."""
        ...

    def low_rank(self, name: str, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The same change of a matrix as ``up @ down``, ``[out, rank]`` and ``[rank, in]``."""
        ...


@dataclass(frozen=True, eq=False)
class SharedMatrix:
    """Every matrix ``W`` becomes ``W (I + left^T right)``; both factors ``[rows, width]``."""

    form: ClassVar[str] = "shared_matrix"
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
class Ridge:
    """Every matrix ``W`` becomes ``W M``, with ``M`` the solution of a ridge system.

    What is stored is the system, so that rows can be added to it later and taken out again.
    """

    form: ClassVar[str] = "ridge"
    names: tuple[str, ...]
    moved: Moved
    """The rows of what is erased, and where they go."""
    kept: Tensor
    """Rows whose outputs stay, times the root of their weight, ``[kept, width]``."""
    lamb: float
    """Weight of staying near the old weights."""

    def change(self, name: str, weight: Tensor) -> Tensor:
        up, down = self.low_rank(name, weight)
        return up @ down

    def low_rank(self, name: str, weight: Tensor) -> tuple[Tensor, Tensor]:
        left, right = self.factors
        return weight.double() @ left.T.to(weight.device), right.to(weight.device)

    def tensors(self) -> dict[str, Tensor]:
        moved = self.moved.tensors()
        return {**moved, "kept": self.kept, "lamb": torch.tensor(self.lamb, dtype=torch.float64)}

    @classmethod
    def of(cls, names: tuple[str, ...], tensors: Mapping[str, Tensor]) -> "Ridge":
        moved: Moved
        if "gram" in tensors:
            moved = Statistics.of(tensors)
        else:
            moved = Rows(tensors["sources"], tensors["targets"], tensors["weights"])
        return cls(names, moved, tensors["kept"], float(tensors["lamb"]))

    @cached_property
    def factors(self) -> SharedFactors:
        """``M = I + left^T right``, float64."""
        return shared_factors(self.moved, self.kept, self.lamb)

    @property
    def matrix(self) -> Tensor:
        """``M``, ``[width, width]`` float64.

        The unedited UNet given ``embeddings @ M.T`` draws what the edited one draws.
        """
        left, right = self.factors
        return torch.eye(left.shape[1], dtype=torch.float64, device=left.device) + left.T @ right


def together(payloads: Sequence[Payload]) -> tuple[Change, ...]:
    """The changes among the payloads, with all ridge systems of the same matrices made one.

    Erasing by one system is what erasing jointly means: the sum of two edits moves the rows of
    both, as if they had been made in one call.
    """
    systems: dict[tuple[str, ...], list[Ridge]] = {}
    for payload in payloads:
        if isinstance(payload, Ridge):
            systems.setdefault(payload.names, []).append(payload)
    joint = (
        Ridge(names, joined([part.moved for part in parts]), parts[0].kept, parts[0].lamb)
        for names, parts in systems.items()
    )
    changes = (payload for payload in payloads if isinstance(payload, Change))
    return (*joint, *(change for change in changes if not isinstance(change, Ridge)))


def check_together(payloads: Sequence[Payload]) -> None:
    """See that all ridge systems that share a matrix can be solved as one.

    Raises:
        ExpungeError: two of them keep different things, or were made with different settings.
    """
    systems = [payload for payload in payloads if isinstance(payload, Ridge)]
    for number, one in enumerate(systems):
        for two in systems[:number]:
            if set(one.names) & set(two.names) and (difference := _difference(one, two)):
                raise ExpungeError(
                    f"these edits {difference}: their sum isn't the edit of both; make them with "
                    "the same settings and the same things to keep, or erase both in one call"
                )


def _difference(one: Ridge, two: Ridge) -> str:
    if one.names != two.names:
        return "change different matrices, with some in common"
    if one.lamb != two.lamb:
        return f"have lamb {one.lamb:g} and {two.lamb:g}"
    same = one.kept is two.kept or torch.equal(one.kept, two.kept) or _alike(one.kept, two.kept)
    return "" if same else "keep different prompts, or keep them at different weights"


def _alike(one: Tensor, two: Tensor) -> bool:
    """Do rows weigh the same but for the rounding of a text encoder on another machine?"""
    first, second = gram(one), gram(two)
    return bool((first - second).norm() <= 1e-5 * first.norm())


@dataclass(frozen=True, eq=False)
class LowRank:
    """Each ``W`` becomes ``W + up @ down``: ``up`` ``[out, rank]``, ``down`` ``[rank, in]``.

    A 1 x 1 convolution ``[out, in, 1, 1]`` is a matrix too.
    A ``down`` that is one and the same tensor for all of several parameters is stored once.
    """

    form: ClassVar[str] = "low_rank"
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
    """Each parameter gets its own change, stored whole."""

    form: ClassVar[str] = "dense"
    changes: Mapping[str, Tensor]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.changes)

    def change(self, name: str, weight: Tensor) -> Tensor:
        return self.changes[name].to(weight.device, torch.float64)

    def low_rank(self, name: str, weight: Tensor) -> tuple[Tensor, Tensor]:
        change = self.change(name, weight)
        if change.ndim != 2:
            raise ExpungeError(f"{name}: its change isn't that of a matrix and has no factors")
        return change, torch.eye(change.shape[1], dtype=torch.float64, device=change.device)

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.changes)

    @classmethod
    def of(cls, names: tuple[str, ...], tensors: Mapping[str, Tensor]) -> "Dense":
        return cls({name: tensors[name] for name in names})


@dataclass(frozen=True, eq=False)
class Sum:
    """Several changes of the same parameters, added up; each is computed from the base weights."""

    form: ClassVar[str] = "sum"
    parts: tuple[Change, ...]

    def __post_init__(self) -> None:
        if not self.parts or any(set(part.names) != set(self.names) for part in self.parts):
            raise ExpungeError("the parts of a sum must change the same parameters")

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


CHANGES: Mapping[str, type[Change]] = {
    kind.form: kind for kind in (SharedMatrix, Ridge, LowRank, Dense, Sum)
}
"""What a file may hold, by form."""

Kind = TypeVar("Kind", bound=Payload)


def stored(
    kinds: Mapping[str, type[Kind]],
    form: str,
    names: tuple[str, ...],
    tensors: Mapping[str, Tensor],
) -> Kind:
    """The payload that ``tensors()`` was taken from, one of ``kinds``.

    Raises:
        ExpungeError: the form is unknown or a tensor is missing.
    """
    if form not in kinds:
        raise ExpungeError(f"unknown payload {form!r}; this edit needs a newer version of expunge")
    try:
        return kinds[form].of(names, tensors)
    except KeyError as error:
        raise ExpungeError(f"the edit lacks the tensor {error}; the file is damaged") from None
