"""Embedding descent: all rows of a prompt but the first are free.

The rows go down the difference between what the edited model answers for them and what the base
answers for the concept, on the way to the base's own pictures of it::

    L = mean | eps_edited(x_t, t, rows) - eps_base(x_t, t, c) |^2

No row grows longer than the concept's longest row allows. This is P4D's objective (Chin et al.,
ICML 2024) in the place where concept inversion searches (Pham et al., ICLR 2024), with more
freedom than either.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from expunge.attacks import points
from expunge.attacks.base import Attack, Knows, Search, turns
from expunge.attacks.descent import Descent
from expunge.attacks.found import Found
from expunge.attacks.target import Target
from expunge.errors import Unsupported
from expunge.models import Condition
from expunge.prompts.everyday import everyday, unnamed
from expunge.seeding import generator, integer


class Rows(Attack):
    """Free rows, towards the base's predictions."""

    name: ClassVar[str] = "rows"
    title: ClassVar[str] = "Embedding descent"
    year: ClassVar[int] = 2024
    url: ClassVar[str] = "https://arxiv.org/abs/2308.01508"
    knows: ClassVar[frozenset[Knows]] = frozenset({"weights", "base", "pictures"})

    starts: int = Field(3, ge=1)
    """Searches, each from another prompt; pictures are shared among them."""
    lr: float = Field(0.02, gt=0)
    """Learning rate of Adam, in units of the concept's longest row."""
    longest: float = Field(1.5, gt=0)
    """Length that a row may have, in the same unit."""
    batch_size: int = Field(8, ge=1)
    """Points that a step looks at."""

    def check(self, target: Target) -> None:
        check_rows(target)

    def groups(self, pictures: int) -> Sequence[Sequence[int]]:
        return turns(pictures, self.starts)

    def begin(self, target: Target, pictures: Sequence[int], seed: int) -> Search:
        return FreeRows(self, target, pictures, seed)


class FreeRows(Search):
    """One start."""

    def __init__(self, attack: Rows, target: Target, pictures: Sequence[int], seed: int) -> None:
        self.attack, self.target, self.pictures = attack, target, pictures
        self.seed, self.start = seed, pictures[0]
        unit = longest_row(target)
        self.limit = attack.longest * unit
        self.condition = self._begun()
        self.descent = Descent(
            {"rows": self.condition.rows[:, 1:]},
            partial(torch.optim.Adam, lr=attack.lr * unit),
            self._shorten,
        )

    def _begun(self) -> Condition:
        draws = generator(self.seed, "start", self.start)
        prompt = unrelated(self.target, draws)
        return self.target.model.condition([prompt]).detach()

    def _shorten(self) -> None:
        shorten(self.descent["rows"], self.limit)

    @property
    def now(self) -> Condition:
        """The condition as it is, with gradients."""
        rows = torch.cat([self.condition.rows[:, :1], self.descent["rows"]], 1)
        return replace(self.condition, rows=rows)

    def step(self) -> None:
        draws = generator(self.seed, "rows", self.start, self.descent.steps)
        numbers = self.target.known.draw(self.attack.batch_size, draws)
        self.descent.step(points.known(self.target, numbers, "base").loss(self.target, self.now))

    @property
    def state(self) -> Mapping[str, Tensor]:
        return self.descent.state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.descent.restore(state)

    def found(self) -> Found:
        return Found(condition=self.now.detach(), loss=self.descent.last)


def check_rows(target: Target) -> None:
    """Refuse a target that draws prompts alone.

    Raises:
        Unsupported: a guard of it reads the tokens of a prompt.
    """
    if target.reads_tokens:
        raise Unsupported("a guard of this edit reads tokens, and draws no rows without them")


def longest_row(target: Target) -> float:
    """Length of the longest row that asks for the concept."""
    rows = target.model.encode([target.concept.target])
    return float(rows.float().norm(dim=-1).max())


def shorten(rows: Tensor, limit: float) -> None:
    """Shorten rows ``[..., width]`` that are longer, in place."""
    rows *= (limit / rows.norm(dim=-1, keepdim=True)).clamp(max=1)


def unrelated(target: Target, draws: torch.Generator) -> str:
    """An everyday prompt that doesn't name the concept."""
    prompts = unnamed(everyday(), target.concept.phrases)
    return prompts[integer(draws, 0, len(prompts))]
