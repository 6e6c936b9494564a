"""Closed-form edits: each stores its ridge system, and all of a model are solved as one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

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


@dataclass(frozen=True, eq=False)
class Ridge:
    """Every matrix ``W`` becomes ``W M``, with ``M`` the solution of a ridge system.

    The system is stored, so that rows can be added later and removed again.
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


def joint(systems: Sequence[Ridge]) -> tuple[Ridge, ...]:
    """One system for each set of matrices, with the rows of all systems of these matrices.

    So the sum of two edits is the edit that erases both in one call.
    """
    groups: dict[tuple[str, ...], list[Ridge]] = {}
    for system in systems:
        groups.setdefault(system.names, []).append(system)
    return tuple(
        Ridge(names, joined([part.moved for part in parts]), parts[0].kept, parts[0].lamb)
        for names, parts in groups.items()
    )


def check_joint(systems: Sequence[Ridge]) -> None:
    """Check that all systems that share a matrix can be solved as one.

    Raises:
        ExpungeError: two of them keep different things, or were made with different settings.
    """
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
    """Whether two sets of rows are the same but for a text encoder's rounding elsewhere."""
    first, second = gram(one), gram(two)
    return bool((first - second).norm() <= 1e-5 * first.norm())
