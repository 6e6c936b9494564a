"""Closed-form edits: each stores its ridge system, and all of a model are solved as one."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from expunge.algebra.ridge import (
    Moved,
    Rows,
    SharedFactors,
    Statistics,
    factor,
    gram,
    joined,
    shared_factors,
)
from expunge.errors import ExpungeError


@dataclass(frozen=True, eq=False)
class LeftOut:
    """Prompts whose rows are among those to keep, and must not be: they name what is erased.

    Each is held by itself, so that edits which share one leave it out once.
    """

    numbers: Tensor
    """What tells the prompts apart, ``[prompts]`` integers."""
    counts: Tensor
    """How many of the rows belong to each, ``[prompts]`` integers."""
    rows: Tensor
    """Their rows, times the root of their weight, ``[rows, width]``."""

    @classmethod
    def together(cls, parts: "Sequence[LeftOut]") -> "LeftOut":
        """All prompts of several, each once."""
        prompts: dict[int, Tensor] = {}
        for part in parts:
            each = torch.split(part.rows, part.counts.tolist())
            prompts.update(zip(part.numbers.tolist(), each, strict=True))
        counts = torch.tensor([len(rows) for rows in prompts.values()])
        return cls(torch.tensor(list(prompts)), counts, torch.cat(list(prompts.values())))

    def scaled(self, weight: float) -> "LeftOut":
        """The same prompts at another weight."""
        return replace(self, rows=weight**0.5 * self.rows)

    def tensors(self) -> dict[str, Tensor]:
        """What a file holds."""
        return {
            "left_out_numbers": self.numbers,
            "left_out_counts": self.counts,
            "left_out": self.rows,
        }

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "LeftOut | None":
        """What ``tensors()`` was taken from, if anything is left out."""
        if "left_out" not in tensors:
            return None
        return cls(tensors["left_out_numbers"], tensors["left_out_counts"], tensors["left_out"])


@dataclass(frozen=True, eq=False)
class Stays:
    """Rows whose outputs stay."""

    kept: Tensor
    """Rows, times the root of their weight, ``[kept, width]``."""
    left_out: LeftOut | None = None
    """Prompts among them that don't stay."""

    @classmethod
    def summed(
        cls, total: Tensor, left_out: LeftOut | None = None, *, rounded: bool = False
    ) -> "Stays":
        """Rows with a Gram matrix ``total`` ``[width, width]``.

        ``rounded`` gives them in single precision, which halves the edit that holds them.
        """
        rows = factor(total)
        return cls(rows.float() if rounded else rows, left_out)

    @property
    def rows(self) -> Tensor:
        """Rows ``[kept, width]`` float64 with the Gram matrix of what stays."""
        if self.left_out is None:
            return self.kept
        return factor(gram(self.kept) - gram(self.left_out.rows.to(self.kept.device)))


@dataclass(frozen=True, eq=False)
class Ridge:
    """Every matrix ``W`` becomes ``W M``, with ``M`` the solution of a ridge system.

    The system is stored, so that rows can be added later and removed again.
    """

    form: ClassVar[str] = "ridge"
    reads_text: ClassVar[bool] = True
    names: tuple[str, ...]
    moved: Moved
    """The rows of what is erased, and where they go."""
    kept: Tensor
    """Rows whose outputs stay, times the root of their weight, ``[kept, width]``."""
    lamb: float
    """Weight of staying near the old weights."""
    left_out: LeftOut | None = None
    """Prompts among those to keep that name what is erased."""

    @classmethod
    def together(cls, parts: "Sequence[Ridge]") -> "Ridge":
        """The system of several that keep the same and change the same matrices."""
        left_out = [part.left_out for part in parts if part.left_out]
        return replace(
            parts[0],
            moved=joined([part.moved for part in parts]),
            left_out=LeftOut.together(left_out) if left_out else None,
        )

    def change(self, name: str, weight: Tensor) -> Tensor:
        up, down = self.low_rank(name, weight)
        return up @ down

    def low_rank(self, name: str, weight: Tensor) -> tuple[Tensor, Tensor]:
        left, right = self.factors
        return weight.double() @ left.T.to(weight.device), right.to(weight.device)

    def tensors(self) -> dict[str, Tensor]:
        lamb = torch.tensor(self.lamb, dtype=torch.float64)
        left_out = self.left_out.tensors() if self.left_out else {}
        return {**self.moved.tensors(), **_packed(self.kept), "lamb": lamb, **left_out}

    @classmethod
    def of(cls, names: tuple[str, ...], tensors: Mapping[str, Tensor]) -> "Ridge":
        moved: Moved
        if "gram" in tensors:
            moved = Statistics.of(tensors)
        else:
            moved = Rows(tensors["sources"], tensors["targets"], tensors["weights"])
        lamb, left_out = float(tensors["lamb"]), LeftOut.of(tensors)
        return cls(names, moved, _unpacked(tensors), lamb, left_out)

    @cached_property
    def factors(self) -> SharedFactors:
        """``M = I + left^T right``, float64."""
        return shared_factors(self.moved, Stays(self.kept, self.left_out).rows, self.lamb)

    @property
    def matrix(self) -> Tensor:
        """``M``, ``[width, width]`` float64.

        The unedited UNet given ``embeddings @ M.T`` draws what the edited one draws.
        """
        left, right = self.factors
        return torch.eye(left.shape[1], dtype=torch.float64, device=left.device) + left.T @ right


def _packed(kept: Tensor) -> dict[str, Tensor]:
    """What a file holds of the rows to keep: of a triangle, only that."""
    if len(kept) != kept.shape[1] or kept.tril(-1).any():
        return {"kept": kept}
    return {"kept_triangle": kept[tuple(torch.triu_indices(*kept.shape, device=kept.device))]}


def _unpacked(tensors: Mapping[str, Tensor]) -> Tensor:
    if "kept" in tensors:
        return tensors["kept"]
    triangle = tensors["kept_triangle"]
    width = math.isqrt(2 * len(triangle))
    whole = triangle.new_zeros(width, width)
    whole[tuple(torch.triu_indices(width, width, device=triangle.device))] = triangle
    return whole


def joint(systems: Sequence[Ridge]) -> tuple[Ridge, ...]:
    """One system for each set of matrices, with the rows of all systems of these matrices.

    So the sum of two edits is the edit that erases both in one call.
    """
    groups: dict[tuple[str, ...], list[Ridge]] = {}
    for system in systems:
        groups.setdefault(system.names, []).append(system)
    return tuple(Ridge.together(parts) for parts in groups.values())


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
