"""CPE's losses without keys and values: a few small products of all layers are enough.

In every layer l of L, the gates' additions are to equal given residual rows ``p``::

    mean over l and entries of kappa_l |W_l p - Z_l U_l|^2
        = p G p^T  -  2 sum_l w_l Z_l (U_l W_l p^T)  +  sum_l w_l Z_l (U_l U_l^T) Z_l^T

    G = sum_l w_l W_l^T W_l      w_l = kappa_l / (L d_l)      Z_l = g (A (X D_l))

G is one constant matrix, Z has a column for each layer and rank, and nothing is as wide as the
keys and values. Each loss has its own p: ``(1 + g)(n - t)`` for erasing, the same minus P for
targets shifted by P, ``-P`` for the attack that searches for P, and 0 for anchors. All concepts are
computed side by side; their losses are independent.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from expunge.edits.residual_gates import ResidualGates
from expunge.models import Model


@dataclass(frozen=True, eq=False)
class Surface:
    """What the losses need of a model's key and value projections."""

    names: tuple[str, ...]
    weights: tuple[Tensor, ...]
    """``W_l``, ``[out, width]`` each, float32."""
    kappa: Tensor
    """``[layers]`` float64."""

    @classmethod
    def of(cls, model: Model) -> "Surface":
        """The surface of a model's base weights."""
        names = model.select("cross_attention.kv")
        return cls(names, tuple(model.base_weight(n).float() for n in names), kappa(model, names))

    @property
    def widths(self) -> tuple[int, ...]:
        """``d_l``."""
        return tuple(len(weight) for weight in self.weights)

    @cached_property
    def shares(self) -> Tensor:
        """``w_l``, ``[layers]`` float64."""
        return self.kappa / (len(self.weights) * self.kappa.new_tensor(self.widths))

    @cached_property
    def gram(self) -> Tensor:
        """``G``, ``[width, width]`` float32."""
        parts = (
            share * (weight.double().T @ weight.double())
            for share, weight in zip(self.shares, self.weights, strict=True)
        )
        return sum(parts, self.kappa.new_zeros(())).float()

    def squared(self, rows: Tensor) -> Tensor:
        """``p G p^T`` summed over ``[concepts, batch, tokens, width]``: ``[concepts]`` float64.

        Its gradient ``2 p G`` reuses the product that the value needs.
        """
        with torch.no_grad():
            product = rows @ self.gram
        value = (rows.detach() * product).sum((1, 2, 3), dtype=torch.float64)
        slope = 2 * (rows * product).sum((1, 2, 3), dtype=torch.float64)
        return value + slope - slope.detach()


def kappa(model: Model, names: tuple[str, ...]) -> Tensor:
    """How far a change of keys or values can move an attention's output, ``[layers]`` float64.

    For values, this is the largest singular value of ``W_o``. For keys, it is that of ``W_o W_v``
    times that of ``W_q``, divided by the number of tokens.
    """
    tokens = model.unconditional().rows.shape[1]

    def largest(*products: str) -> Tensor:
        first, *rest = (model.base_weight(name).double() for name in products)
        for weight in rest:
            first = first @ weight
        norm: Tensor = torch.linalg.matrix_norm(first, 2)
        return norm

    def of(name: str) -> Tensor:
        attention = model.projections_beside(name)
        if name == attention.value:
            return largest(attention.output)
        return largest(attention.output, attention.value) * largest(attention.query) / tokens

    return torch.stack([of(name) for name in names])


def responses(gates: ResidualGates, rows: Tensor) -> Tensor:
    """``Z = g (A (X D))`` of every concept, ``[concepts, batch, tokens, layers, rank]``.

    ``rows`` is ``[batch, tokens, width]`` for all concepts, or ``[concepts, batch, ...]`` with rows
    for each.
    """
    key = [] if gates.key is None else [gates.key]
    maps = torch.cat([gates.query, *key, gates.gate[:, None], gates.down.flatten(1, 2)], 1)
    count, columns, _ = maps.shape
    if rows.ndim == 3:
        flat = rows.flatten(0, 1) @ maps.flatten(0, 1).T
        products = flat.view(*rows.shape[:2], count, columns).permute(2, 0, 1, 3)
    else:
        products = (rows.flatten(1, 2) @ maps.mT).view(*rows.shape[:3], columns)
    rank = gates.query.shape[1]
    sides = [rank] * (1 + len(key))
    *looks, rest = torch.split(products, [*sides, columns - sum(sides)], -1)
    looked = (looks[0] @ looks[-1].mT).softmax(-1) @ rest
    opened = torch.sigmoid(looked[..., :1]) * looked[..., 1:]
    return opened.view(*opened.shape[:3], *gates.down.shape[1:3])


class WeightedUps(NamedTuple):
    """What the losses need of ``U_l``, weighted by ``w_l``."""

    squares: Tensor
    """``U_l U_l^T``, ``[concepts, layers, rank, rank]`` float64."""
    outputs: Tensor
    """``U_l W_l``, ``[concepts, layers, rank, width]``."""

    @classmethod
    def of(cls, gates: ResidualGates, surface: Surface) -> "WeightedUps":
        shares = surface.shares[:, None, None]
        pairs = zip(gates.ups, surface.weights, strict=True)
        squares = torch.stack([up @ up.mT for up in gates.ups], 1)
        return cls(shares * squares, shares.float() * torch.stack([up @ w for up, w in pairs], 1))

    def square(self, responses: Tensor) -> Tensor:
        """``sum Z (U U^T) Z^T`` over the batch, ``[concepts]`` float64."""
        columns = responses.flatten(1, 2).permute(0, 2, 3, 1)
        return (self.squares * (columns @ columns.mT)).sum((1, 2, 3))

    def product(self, responses: Tensor, rows: Tensor) -> Tensor:
        """``sum Z (U W p^T)`` for residual rows ``[concepts, batch, tokens, width]``."""
        outputs = rows.flatten(1, 2) @ self.outputs.flatten(1, 2).mT
        return (responses.flatten(1, 2).flatten(2) * outputs).sum((1, 2), dtype=torch.float64)


class Losses(NamedTuple):
    """The losses of every concept, ``[concepts]`` float64."""

    erase: Tensor
    anchor: Tensor
    adversarial: Tensor | None


class StepEmbeddings(NamedTuple):
    """The embeddings of one step."""

    target: Tensor
    """``[concepts, tokens, width]``."""
    neutral: Tensor
    """The replacement's, shaped like ``target``."""
    anchors: Tensor
    """``[anchors, tokens, width]``, or ``[concepts, anchors, ...]`` with anchors for each concept.
    The empty prompt comes last."""
    counted: Tensor | None = None
    """Which anchors count for a concept, ``[concepts, anchors]``; ``None`` if all do."""


def erasing(
    gates: ResidualGates,
    surface: Surface,
    prompts: StepEmbeddings,
    guidance: float,
    offsets: Tensor | None = None,
    offsets_square: Tensor | None = None,
) -> Losses:
    """The losses of an erasing stage.

    Args:
        gates: what is trained.
        surface: that of the model.
        prompts: the embeddings of this step.
        guidance: g.
        offsets: P, ``[concepts, shifts, tokens, width]``; ``None`` before the first attack.
        offsets_square: ``surface.squared`` of them, constant within a stage.
    """
    factors = WeightedUps.of(gates, surface)
    away = ((1 + guidance) * (prompts.neutral - prompts.target))[:, None]
    targets = prompts.target[:, None]
    tokens = targets.shape[2]
    with torch.no_grad():
        goal = away @ surface.gram
        square = (goal * away).sum((1, 2, 3), dtype=torch.float64)
    rows = targets if offsets is None else torch.cat([targets, targets + offsets], 1)
    given = responses(gates, rows)
    erase = square - 2 * factors.product(given[:, :1], away) + factors.square(given[:, :1])
    anchor = _anchored(factors, responses(gates, prompts.anchors), prompts.counted)
    if offsets is None or offsets_square is None:
        return Losses(erase / tokens, anchor, None)
    shifts = offsets.shape[1]
    with torch.no_grad():
        crossed = (goal[:, 0] * offsets.sum(1)).sum((1, 2), dtype=torch.float64)
        constant = shifts * square - 2 * crossed + offsets_square
    shifted = given[:, 1:]
    missed = constant - 2 * factors.product(shifted, away - offsets) + factors.square(shifted)
    return Losses(erase / tokens, anchor, missed / (shifts * tokens))


def _anchored(factors: WeightedUps, given: Tensor, counted: Tensor | None) -> Tensor:
    _, anchors, tokens = given.shape[:3]
    if counted is None:
        return factors.square(given) / (anchors * tokens)
    here = counted.to(given)[:, :, None, None, None] * given
    return factors.square(here) / (counted.sum(1) * tokens)


def attacking(gates: ResidualGates, surface: Surface, target: Tensor, offsets: Tensor) -> Tensor:
    """The attack's loss: distance of shifted targets from the old keys and values, ``[concepts]``.

    ``target`` is ``[concepts, tokens, width]``, ``offsets`` ``[concepts, shifts, tokens, width]``.
    """
    factors = WeightedUps.of(gates, surface)
    given = responses(gates, target[:, None] + offsets)
    missed = surface.squared(offsets) + 2 * factors.product(given, offsets) + factors.square(given)
    return missed / (offsets.shape[1] * offsets.shape[2])
