"""SAFREE's view of a prompt: which tokens lead to the concept, and what takes their place.

``C`` are the concept's phrases as one row each, ``P_C`` is the projection onto their span. Of a
prompt with ``n`` tokens, copy ``i`` has token ``i`` masked; ``P_I`` is the projection onto the span
of these copies as one row each. A copy's distance from the concept is ``d_i = |(I - P_C) e_i|``;
the farther it is, the more of the concept the masked token holds. It is a *trigger* if::

    d_i >= (1 + alpha) mean of the d_j, j != i

and its row ``e`` of the prompt's embedding becomes ``(I - P_C) P_I e`` (Yoon et al., ICLR 2025,
sections 3.1 and 3.2).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from expunge.algebra.projection import gram_projector, projector

MASK = 0
"""The token id that a masked token becomes."""


class Rule(NamedTuple):
    """The numbers of the rule."""

    alpha: float
    """How much farther than the others a trigger's copy must be, as a share."""
    alone: float
    """A prompt of one token is a trigger if it lies this near to the concept, as a share of its
    length."""
    most: int
    """The largest number of a step in which the filtered prompt can be used."""
    centre: float
    slope: float
    """Of the curve from how far a prompt moves to how long it is filtered."""
    validated: int
    """0: the filtered prompt is used in all steps."""
    released: int
    """Not 0: as the released program computes, projections in single precision among it."""

    def projector(self, rows: Tensor) -> Tensor:
        """The projection onto the span of ``rows`` ``[rows, width]``, ``[width, width]``."""
        return gram_projector(rows.float()) if self.released else projector(rows)

    def triggers(self, distances: Tensor, share: float) -> Tensor:
        """Which tokens are triggers, ``[n]`` bool, from their copies' distances ``[n]``.

        ``share`` is the distance of the unmasked prompt as a share of its length. One token has no
        others to be compared with; the released program always counts it.
        """
        if len(distances) == 1:
            return torch.tensor([bool(self.released) or share <= self.alone])
        others = (distances.sum() - distances) / (len(distances) - 1)
        found: Tensor = ~(distances < (1 + self.alpha) * others)
        return found

    def last_step(self, moved: float) -> float:
        """The number of the last step with the filtered prompt.

        ``round(most / (1 + exp(-2 k (10 b - c))))``; ``moved`` is ``b``, 1 less the mean cosine of
        rows before and after.
        """
        if not self.validated:
            return math.inf
        return round(self.most / (1 + math.exp(-2 * self.slope * (10 * moved - self.centre))))


class View(NamedTuple):
    """What SAFREE sees in one prompt."""

    distances: Tensor
    """``d``, ``[n]``."""
    trigger: Tensor
    """``[n]`` bool."""
    projected: Tensor
    """Every row through ``(I - P_C) P_I``, ``[tokens, width]``."""
    filtered: Tensor
    """The embedding with the triggers' rows replaced, ``[tokens, width]``."""
    moved: float
    """1 less the mean cosine of the prompt's rows with their projections."""
    last_step: float
    """The number of the last step in which ``filtered`` is used."""


def masked(tokens: list[int]) -> list[list[int]]:
    """The prompt's copies: in each, one of the tokens is masked."""
    return [[*tokens[:at], MASK, *tokens[at + 1 :]] for at in range(len(tokens))]


def view(rule: Rule, rows: Tensor, copies: Tensor, whole: Tensor, concept: Tensor) -> View:
    """What SAFREE sees in one prompt with at least one token; gradients reach ``rows`` only.

    Args:
        rule: the numbers.
        rows: the prompt's embedding, ``[tokens, width]``.
        copies: a row for each copy with a masked token, ``[n, width]``.
        whole: the same of the prompt itself, ``[width]``.
        concept: ``P_C``, ``[width, width]``; all is computed where it is.
    """
    copies, whole = copies.to(concept), whole.to(concept)
    away = torch.eye(len(concept), dtype=concept.dtype) - concept
    distances = (copies @ away).norm(dim=1)
    share = float((away @ whole).norm() / whole.norm())
    trigger = rule.triggers(distances, share)
    projected = rows.to(concept) @ (away @ rule.projector(copies)).T
    places = torch.zeros(len(rows), 1, dtype=torch.bool)
    places[1 : 1 + len(trigger), 0] = trigger
    filtered = torch.where(places.to(rows.device), projected.to(rows), rows)
    of_text = slice(0, len(trigger) + 2)
    alike = cosine_similarity(projected[of_text].detach(), rows[of_text].detach().to(concept))
    moved = float(1 - alike.mean())
    return View(distances, trigger, projected, filtered, moved, rule.last_step(moved))
