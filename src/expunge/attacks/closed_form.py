"""The rows that answer an edit of keys and values best, in closed form.

Cross-attention sees a row ``e`` of a prompt only through its keys and values. So the best rows
against edited projections ``W'`` are those whose keys and values are what the base's ``W`` made
of the concept's own rows ``c``, row by row::

    min_{|e| <= R}  sum_l | W'_l e - W_l c |^2

That is a trust-region problem. With ``sum W'^T W' = Q L Q^T`` and ``b = Q^T (sum W'^T W) c`` its
solution is ``e = Q (L + nu)^-1 b``, with the smallest ``nu >= 0`` for which ``|e| <= R``. RECE's
embedding (Gong et al., ECCV 2024, eq. 7) is the same with one ``nu`` that is given. For an edit
``W M`` with an invertible M and R large enough, ``e = M^-1 c`` gives the base's answer exactly.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from expunge.attacks.base import Attack, Knows, Search
from expunge.attacks.found import Found
from expunge.attacks.rows import check_rows, longest_row
from expunge.attacks.target import Target

HALVINGS = 60
"""Of the interval that holds ``nu``, on a logarithmic scale."""


class ClosedForm(Attack):
    """The smallest distance to the base's keys and values, without gradients or pictures."""

    name: ClassVar[str] = "closed-form"
    title: ClassVar[str] = "Rows in closed form"
    year: ClassVar[int] = 2024
    url: ClassVar[str] = "https://arxiv.org/abs/2407.12383"
    knows: ClassVar[frozenset[Knows]] = frozenset({"weights", "base"})
    spends: ClassVar[bool] = False

    longest: float = Field(1.5, gt=0)
    """R: length that a row may have, in units of the concept's longest row."""

    def check(self, target: Target) -> None:
        check_rows(target)

    def begin(self, target: Target, pictures: Sequence[int], seed: int) -> Search:
        return _Solved(self, target, pictures[0])


class _Solved(Search):
    """The solution is there with the first step; before it, the prompt's own rows."""

    def __init__(self, attack: ClosedForm, target: Target, picture: int) -> None:
        self.attack, self.target = attack, target
        self.condition = target.model.condition([target.prompts[picture]]).detach()
        self.solved = False

    def step(self) -> None:
        rows = self.condition.rows[0]
        target = self.target
        system = target.once("normal equations", lambda: NormalEquations.of(target))
        found = system.nearest(rows.double(), self.attack.longest * longest_row(self.target))
        self.condition = replace(self.condition, rows=found.to(rows)[None])
        self.solved = True

    @property
    def state(self) -> Mapping[str, Tensor]:
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """It is quicker to solve again."""

    def found(self) -> Found:
        return Found(condition=self.condition)

    @property
    def over(self) -> bool:
        return self.solved


class NormalEquations(NamedTuple):
    """What the best rows depend on, all layers together; float64."""

    values: Tensor
    """``L``, ``[width]``."""
    vectors: Tensor
    """``Q``, ``[width, width]``."""
    mixed: Tensor
    """``sum W'^T W``, ``[width, width]``."""

    @classmethod
    def of(cls, target: Target) -> "NormalEquations":
        """Those of a target, inside ``deployed``.

        Raises:
            ExpungeError: the model has no keys and values of the prompt alone.
        """
        model = target.model
        weights = (
            (model.denoiser.get_parameter(name).detach().double(), model.base_weight(name).double())
            for name in model.select("cross_attention.kv")
        )
        return cls.summed(weights)

    @classmethod
    @torch.no_grad()
    def summed(cls, weights: Iterable[tuple[Tensor, Tensor]]) -> "NormalEquations":
        """From each projection as it is and as the base has it, ``[out, width]``."""
        parts = [(now.T @ now, now.T @ before) for now, before in weights]
        values, vectors = torch.linalg.eigh(torch.stack([own for own, _ in parts]).sum(0))
        return cls(values.clamp(min=0), vectors, torch.stack([mixed for _, mixed in parts]).sum(0))

    @torch.no_grad()
    def nearest(self, rows: Tensor, longest: float) -> Tensor:
        """The best rows of at most this length in the place of ``rows``, ``[rows, width]``."""
        wanted = rows @ self.mixed.T @ self.vectors
        # Below this, a direction is one that rounding has left of no answer at all.
        floor = self.values.max() * torch.finfo(torch.float64).eps * len(self.values)
        # Where |e(nu)| <= |b| / nu, nu of |b| / R is large enough.
        low = floor.log().expand(len(rows)).clone()
        high = (wanted.norm(dim=1) / longest).clamp(min=2 * floor).log()
        fits = self._solved(wanted, low).norm(dim=1) <= longest
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            short = self._solved(wanted, middle).norm(dim=1) <= longest
            high, low = torch.where(short, middle, high), torch.where(short, low, middle)
        found = self._solved(wanted, torch.where(fits, floor.log(), high))
        return found @ self.vectors.T

    def _solved(self, wanted: Tensor, log_nu: Tensor) -> Tensor:
        return wanted / (self.values + log_nu.exp().reshape(-1, 1))
