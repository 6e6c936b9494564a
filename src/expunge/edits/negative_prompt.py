"""A negative prompt as a guard: guidance leads away from it instead of from the empty prompt."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from expunge.models import Condition
from expunge.models.calls import Answer

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

    empty: Condition
    """What guidance leads away from without this guard: one prompt."""
    negative: Condition
    """What it leads away from instead: one prompt."""

    @property
    def names(self) -> tuple[str, ...]:
        return ()

    def predict(
        self, denoiser: Answer, latents: Tensor, time: Tensor, condition: Condition
    ) -> Tensor:
        first, second = latents[: len(latents) // 2], latents[len(latents) // 2 :]
        if torch.equal(first, second):  # guidance asks with and without the prompt at one place
            condition = self._replaced(condition)
        return denoiser(latents, time, condition)

    def _replaced(self, condition: Condition) -> Condition:
        """The condition with the negative prompt; the same object for the same rows.

        So gates that act beside this guard open once for a prompt, not in every step.
        """
        rows = condition.rows
        known: Condition | None = self._known.get(rows)  # type: ignore[no-untyped-call]
        if known is None:
            unprompted, known = self._unprompted(rows), condition
            if bool(unprompted.any()):
                negative = self.negative.to(rows.device, rows.dtype).expand(len(condition))
                known = _where(unprompted, negative, condition)
                if not rows.requires_grad:
                    self._known[rows] = known
        return known

    @cached_property
    def _known(self) -> WeakIdKeyDictionary:
        """What ``_replaced`` made, as long as the rows that it was made from exist."""
        return WeakIdKeyDictionary()

    def _unprompted(self, rows: Tensor) -> Tensor:
        """Which rows of a batch are guidance's empty prompt, ``[batch]`` bool."""
        empty = self.empty.rows.to(rows.device, torch.float32)
        distance = (rows.detach().float() - empty).flatten(1).norm(dim=1)
        first = torch.arange(len(rows), device=rows.device) < len(rows) // 2
        alike: Tensor = distance <= ALIKE * empty.norm()
        return first & alike

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


def _where(chosen: Tensor, one: Condition, other: Condition) -> Condition:
    """For each row of a batch, the first condition if it is chosen, else the second."""

    def pick(first: Tensor, second: Tensor) -> Tensor:
        return torch.where(chosen.view(-1, *[1] * (second.ndim - 1)), first, second)

    pooled = None
    if one.pooled is not None and other.pooled is not None:
        pooled = pick(one.pooled, other.pooled)
    return Condition(pick(one.rows, other.rows), pooled, other.extra)
