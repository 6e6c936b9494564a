"""RECE's closed forms: the adversarial embeddings, and the projections that they are found in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from expunge.algebra.ridge import (
    NEGLIGIBLE,
    Rows,
    SharedFactors,
    gram,
    joined,
    shared_factors,
    solve,
)
from expunge.edits.payloads import Change, Dense, LowRank, SharedMatrix
from expunge.edits.ridge import Ridge
from expunge.methods.uce.method import tensor_edit

Technique = Literal["replace", "tensor"]


class Sums(NamedTuple):
    """What the adversarial system needs of the projections, ``[width, width]`` each."""

    inner: Tensor
    """``H = sum W^T W``"""
    outer: Tensor
    """``S = sum W^T W0``"""


class Penalty(NamedTuple):
    """The term ``near |C' - T|^2 + outputs sum |W C'^T - W E^T|^2`` of the adversarial system."""

    target: Tensor
    """T, ``[rows, width]``"""
    near: float
    outputs: float = 0.0


def adversarial(sums: Sums, rows: Tensor, penalty: Penalty) -> Tensor:
    """The rows C' whose edited outputs come nearest to the base outputs of ``rows``, E.

    They minimise ``sum |W C'^T - W0 E^T|^2`` plus the penalty, ``[rows, width]`` float64.

    Raises:
        ExpungeError: the system is singular to working precision.
    """
    target, near, outputs = penalty
    identity = torch.eye(len(sums.inner), dtype=torch.float64, device=rows.device)
    wanted = rows @ sums.outer.T + outputs * rows @ sums.inner + near * target
    return solve((1 + outputs) * sums.inner + near * identity, wanted)


@dataclass(frozen=True, eq=False)
class Shared:
    """Projections ``W = W0 M``, which are never formed."""

    names: tuple[str, ...]
    gram: Tensor
    """``G = sum W0^T W0``, ``[width, width]`` float64."""
    matrix: SharedFactors
    """``M``"""

    @property
    def sums(self) -> Sums:
        left, right = self.matrix
        outer = self.gram + right.T @ (left @ self.gram)
        return Sums(outer + outer @ left.T @ right, outer)

    def edited(self, moved: Sequence[Rows], kept: Tensor, lamb: float) -> "Shared":
        """The projections after an edit that moves these rows, one ``Rows`` for each prompt."""
        return replace(self, matrix=self.matrix @ shared_factors(joined(moved), kept, lamb))

    def payload(self) -> SharedMatrix:
        return SharedMatrix(self.names, *self.matrix.compressed())


@dataclass(frozen=True, eq=False)
class Separate:
    """Projections that share no matrix, because an edit used the technique ``tensor``."""

    technique: Technique
    base: Mapping[str, Tensor]
    changes: Mapping[str, Tensor]
    """``W - W0``, float64."""

    @property
    def weights(self) -> dict[str, Tensor]:
        return {name: self.base[name].double() + change for name, change in self.changes.items()}

    @property
    def sums(self) -> Sums:
        pairs = [(weight, self.base[name].double()) for name, weight in self.weights.items()]
        return Sums(
            gram(*(weight for weight, _ in pairs)),
            reduce(torch.add, (weight.T @ base for weight, base in pairs)),
        )

    def edited(self, moved: Sequence[Rows], kept: Tensor, lamb: float) -> "Separate":
        """The projections after an edit that moves these rows, one ``Rows`` for each prompt."""
        if self.technique == "tensor":
            return self.then(tensor_edit(self.weights, moved, kept, lamb))
        return self.then(Ridge(tuple(self.base), joined(moved), kept, lamb))

    def then(self, step: Change) -> "Separate":
        """The projections after one more change."""
        changes = {
            name: self.changes[name] + step.change(name, weight)
            for name, weight in self.weights.items()
        }
        return replace(self, changes=changes)

    def payload(self) -> LowRank | Dense:
        """The changes as factors with a common right side, or whole if that is smaller."""
        stacked = torch.linalg.qr(torch.cat(list(self.changes.values())), mode="r").R
        _, values, basis = torch.linalg.svd(stacked)
        down = basis[: max(1, int((values > NEGLIGIBLE * values[0]).sum()))].contiguous()
        up = {name: change @ down.T for name, change in self.changes.items()}
        thin = LowRank(up, {name: down.clone() for name in up})
        whole = sum(change.numel() for change in self.changes.values())
        smaller = sum(tensor.numel() for tensor in thin.tensors().values()) < whole
        return thin if smaller else Dense(self.changes)
