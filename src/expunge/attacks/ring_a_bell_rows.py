"""Ring-A-Bell without a search, as RECE's evaluation has it (Gong et al., ECCV 2024).

The model is told of a prompt's rows and the concept's at once, which no prompt says::

    rows = c(p) + n c^

It is an attack on rows, whose numbers don't compare with those of prompts.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from expunge.attacks.base import Attack, Knows, Ready, Search
from expunge.attacks.concept_vector import (
    PairFile,
    Pairs,
    batch_means,
    concept_vector,
    pairs_of,
)
from expunge.attacks.found import Found
from expunge.attacks.rows import check_rows
from expunge.attacks.target import Target
from expunge.models import Condition, Model


class RingABellRows(Attack):
    """Rows of a prompt without the concept, and the concept added to them."""

    name: ClassVar[str] = "ring-a-bell-rows"
    title: ClassVar[str] = "Ring-A-Bell in rows"
    year: ClassVar[int] = 2024
    url: ClassVar[str] = "https://arxiv.org/abs/2407.12383"
    knows: ClassVar[frozenset[Knows]] = frozenset({"text encoder"})
    spends: ClassVar[bool] = False

    fidelity: Literal["original", "corrected"] = "corrected"
    strength: float = Field(3.0, ge=0)
    """n: how much of the concept is added."""
    pairs: PairFile | None = None
    """A file of prompts with the concept and without it; by default everyday prompts."""
    batch_size: int = Field(8, ge=1)
    """Pairs of a batch in the released program, which takes the mean of their means."""

    def vector(self, model: Model, pairs: Pairs) -> Tensor:
        """``c^``, ``[window, width]``."""
        if self.fidelity == "original":
            return batch_means(model, pairs, self.batch_size)
        return concept_vector(model, pairs)

    def rows(self, model: Model, prompt: str, vector: Tensor) -> Condition:
        """``c(p) + n c^``."""
        condition = model.condition([prompt])
        return Condition(condition.rows + self.strength * vector, condition.pooled, condition.extra)

    def check(self, target: Target) -> None:
        check_rows(target)

    def begin(self, target: Target, pictures: Sequence[int], seed: int) -> Search:
        pairs = self.pairs.pairs if self.pairs else pairs_of(target.concept)
        vector = target.once(repr(self), lambda: self.vector(target.model, pairs))
        return Ready(Found(condition=self.rows(target.model, target.prompts[pictures[0]], vector)))
