"""RECE's closed forms: the adversarial embeddings, and the projections that they are found in."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import takewhile
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
from expunge.edits.applied import edited_weights
from expunge.edits.edit import Edit
from expunge.edits.payloads import Change, Dense, LowRank, SharedMatrix, together
from expunge.edits.ridge import Ridge
from expunge.methods.uce.method import tensor_edit
from expunge.models import Model

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
    first: int
    """The number of its rows, the first ones, that are of the first stage."""

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

    def added(self) -> SharedMatrix:
        """What edits have added to the first stage, as a change of the base."""
        added = SharedFactors(*(rows[self.first :] for rows in self.matrix))
        return SharedMatrix(self.names, *added.compressed())


@dataclass(frozen=True, eq=False)
class Separate:
    """Projections that share no matrix, because an edit used the technique ``tensor``."""

    technique: Technique
    base: Mapping[str, Tensor]
    changes: Mapping[str, Tensor]
    """``W - W0``, float64."""
    first: Mapping[str, Tensor]
    """The same after the first stage."""

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

    def added(self) -> LowRank | Dense:
        """What edits have added to the first stage, as a change of the base."""
        added = {name: change - self.first[name] for name, change in self.changes.items()}
        return replace(self, changes=added).payload()

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


def projections(model: Model, stage: Change, technique: Technique) -> Shared | Separate:
    """The keys and values after a change of all of them, for epochs of this technique."""
    weights = {name: model.base_weight(name) for name in stage.names}
    if isinstance(stage, Ridge | SharedMatrix) and technique == "replace":
        matrix = _factors(stage, model)
        return Shared(stage.names, gram(*weights.values()), matrix, len(matrix.left))
    first = {name: stage.change(name, weight) for name, weight in weights.items()}
    return Separate(technique, weights, first, first)


def stage_of(start: Edit, model: Model) -> Change:
    """What an edit does to the keys and values, all of them: by one matrix if it can be."""
    names = model.select("cross_attention.kv")
    changes = together([part.payload for part in start.components])
    changes = tuple(change for change in changes if set(change.names) & set(names))
    shared = [c for c in changes if isinstance(c, Ridge | SharedMatrix)]
    if len(shared) == len(changes) and all(set(c.names) == set(names) for c in shared):
        none = torch.zeros(0, model.text_width, dtype=torch.float64, device=model.device)
        factors = zip((none, none), *(_factors(c, model) for c in shared), strict=True)
        return SharedMatrix(names, *(torch.cat(rows) for rows in factors))
    edited = edited_weights(model, start.components, names)
    before = {name: model.base_weight(name).double() for name in names}
    return Dense({n: (before[n] if w is None else w) - before[n] for n, w in edited.items()})


def _factors(change: Ridge | SharedMatrix, model: Model) -> SharedFactors:
    """Its matrix, on the model's device."""
    left, right = change.factors if isinstance(change, Ridge) else (change.left, change.right)
    return SharedFactors(*(rows.to(model.device, torch.float64) for rows in (left, right)))


def paired_rows(model: Model, prompts: Sequence[str], *, whole: bool) -> Iterator[Tensor]:
    """Rows ``[rows, width]`` of a prompt, its anchor and its target, paired by position.

    Unless ``whole``, they begin where the prompt and its anchor differ. The rows before that, at
    least the start row, carry nothing of the concept and stay.
    """
    words = zip(*(model.tokens(prompt) for prompt in prompts[:2]), strict=False)
    common = 1 + sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], words))
    return (rows[0 if whole else common :] for rows in model.encode(prompts))


class Erased(NamedTuple):
    """Rows of one concept's prompts, stacked, and the rows that belong to them."""

    words: str
    rows: Tensor
    """``[rows, width]``"""
    anchors: Sequence[Tensor]
    """``[rows of the prompt, width]`` for each prompt."""
    target: Tensor | None
    """``[rows, width]``"""

    def paired(self, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Each prompt's part of ``rows`` ``[rows, width]``, with its anchor's rows."""
        parts = torch.split(rows, [len(anchor) for anchor in self.anchors])
        return zip(parts, self.anchors, strict=True)


class Epoch(NamedTuple):
    """The embeddings that an epoch found, and the projections after its edit."""

    adversarial: tuple[Tensor, ...]
    """``[rows, width]`` float64 for each concept."""
    projections: Shared | Separate
