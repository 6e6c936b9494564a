"""Evading a gate: draw the concept while the gate stays shut.

A gate that is wide open has no slope, so descent through it says nothing. Where it is shut, the
model is the one without it. So the rows go down the picture's loss on *that* model, and down the
part of the gate's opening that is above a level::

    L = loss of the picture without the gate + weight * relu(opening - level)

They begin at the concept's own prompt, which draws it best and opens the gate widest.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from expunge.attacks.base import Search
from expunge.attacks.end_to_end import Drawn, EndToEnd
from expunge.attacks.target import Target
from expunge.errors import Unsupported
from expunge.models import Condition
from expunge.seeding import generator


class Evade(EndToEnd):
    """Free rows, towards pictures of the concept that leave the gate shut."""

    name: ClassVar[str] = "evade"
    title: ClassVar[str] = "Evading a gate"

    warm_up: int = Field(0, ge=0)
    """Steps towards the base's predictions that come first."""
    level: float = Field(0.02, ge=0, lt=1)
    """Opening that is shut enough."""
    weight: float = Field(100.0, gt=0)
    """What opening beyond that costs, beside the picture's loss."""

    def view(self, target: Target) -> AbstractContextManager[None]:
        return target.ungated()

    def check(self, target: Target) -> None:
        if not target.gates:
            raise Unsupported(f"{self.name}: the edit has no gate; for weights use end-to-end")
        super().check(target)

    def begin(self, target: Target, pictures: Sequence[int], seed: int) -> Search:
        return _Evading(self, target, pictures, seed)


class _Evading(Drawn):
    """One start."""

    attack: Evade

    def _begun(self) -> Condition:
        draws = generator(self.seed, "evade", self.start)
        condition = self.target.model.condition([self.target.prompts[self.start]]).detach()
        jitter = torch.randn(condition.rows.shape, generator=draws).to(condition.rows)
        return replace(condition, rows=condition.rows + 0.01 * jitter)

    def picture_loss(self, condition: Condition, draws: torch.Generator) -> Tensor:
        loss = super().picture_loss(condition, draws)
        for gate in self.target.gates:
            opening = gate.opening(condition.rows, [None])
            loss = loss + self.attack.weight * (opening - self.attack.level).relu().sum()
        return loss
