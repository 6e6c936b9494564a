"""A negative prompt as a guard: guidance leads away from it instead of from the empty prompt."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from expunge.edits.drawings import Step
from expunge.edits.guards import Denoiser
from expunge.models import Condition

ALIKE = 1e-2
"""Rows within this relative distance are those of the empty prompt, in any precision."""


@dataclass(frozen=True, eq=False)
class NegativePrompt:
    """Replaces the ``empty`` condition of guidance by ``negative``.

    Guidance has it in the first half of a batch. If the pipeline is called with its own negative
    prompt, that stays; without guidance nothing changes.
    """

    form: ClassVar[str] = "negative_prompt"
    reads_text: ClassVar[bool] = True
    reads_tokens: ClassVar[bool] = False
    reroutes: ClassVar[bool] = False

    empty: Condition
    """What guidance leads away from without this guard: one prompt."""
    negative: Condition
    """What it leads away from instead: one prompt."""

    @property
    def names(self) -> tuple[str, ...]:
        return ()

    def predict(self, denoiser: Denoiser, step: Step) -> Tensor:
        if step.guided is None:
            return denoiser(step)
        return denoiser(step.told(step.once(self, partial(self._replaced, step))))

    def acts(self) -> bool:
        return not torch.equal(self.empty.rows, self.negative.rows)

    def _replaced(self, step: Step) -> Condition:
        """The step's condition with the negative prompt; the same object if nothing is replaced."""
        rows = step.condition.rows
        unprompted = self._unprompted(step)
        if not bool(unprompted.any()):
            return step.condition
        negative = self.negative.to(rows.device, rows.dtype).expand(len(rows))
        return where(unprompted, negative, step.condition)

    def _unprompted(self, step: Step) -> Tensor:
        """Which rows of a batch are guidance's empty prompt, ``[batch]`` bool."""
        rows, guided = step.condition.rows, step.guided
        assert guided is not None
        empty = self.empty.rows.to(rows.device, torch.float32)
        distance = (rows.detach().float() - empty).flatten(1).norm(dim=1)
        alike: Tensor = distance <= ALIKE * empty.norm()
        return alike & torch.cat([guided, torch.zeros_like(guided)])

    def tensors(self) -> dict[str, Tensor]:
        found = {}
        for side, condition in (("empty", self.empty), ("negative", self.negative)):
            found[f"{side}:rows"] = condition.rows
            if condition.pooled is not None:
                found[f"{side}:pooled"] = condition.pooled
        return found

    @classmethod
    def of(cls, names: tuple[str, ...], tensors: Mapping[str, Tensor]) -> "NegativePrompt":
        sides = (
            Condition(tensors[f"{side}:rows"], tensors.get(f"{side}:pooled"))
            for side in ("empty", "negative")
        )
        return cls(*sides)


def where(chosen: Tensor, one: Condition, other: Condition) -> Condition:
    """For each row of a batch, the first condition if it is chosen, else the second."""

    def pick(first: Tensor, second: Tensor) -> Tensor:
        return torch.where(chosen.view(-1, *[1] * (second.ndim - 1)), first, second)

    pooled = None
    if one.pooled is not None and other.pooled is not None:
        pooled = pick(one.pooled, other.pooled)
    return Condition(pick(one.rows, other.rows), pooled, other.extra)
