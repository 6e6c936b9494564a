"""SAFREE as a guard: the words of a prompt that lead to the concept are turned away from it.

In the first steps the denoiser gets the prompt as ``safree_text`` filters it, then as it is. The
farther the filter moves a prompt, the more steps it is used in. A prompt without triggers stays as
it is, and so does what guidance leads away from.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import ClassVar, get_args

import torch
from torch import Tensor

from expunge.edits.drawings import Step
from expunge.edits.guards import Denoiser
from expunge.edits.negative_prompt import NegativePrompt, where
from expunge.edits.safree_features import Band, Comparing
from expunge.edits.safree_text import Rule, View, masked, view
from expunge.errors import ExpungeError
from expunge.models import Condition


@dataclass(frozen=True, eq=False)
class Safree:
    """Filters prompts by their tokens."""

    form: ClassVar[str] = "safree"
    reads_text: ClassVar[bool] = True
    reads_tokens: ClassVar[bool] = True
    reroutes: ClassVar[bool] = True

    concept: Tensor
    """The concept's phrases, a row each, ``[phrases, width]``."""
    rule: Rule
    negative: NegativePrompt | None = None
    """What guidance leads away from instead of the empty prompt."""
    band: Band = "off"
    """What of skip features is damped."""

    @property
    def names(self) -> tuple[str, ...]:
        return ()

    def acts(self) -> bool:
        return bool((self.concept != 0).any())

    def predict(self, denoiser: Denoiser, step: Step) -> Tensor:
        if self.negative:
            denoiser = partial(self.negative.predict, denoiser)
        if not step.prompts:
            return denoiser(step)
        plan = step.once(self, partial(_Plan, self, step))
        filtered = step.told(plan.at(step.number))
        if self.band == "off" or filtered.condition is step.condition:
            return denoiser(filtered)
        rows = step.prompted
        uses = (plan.last >= step.number)[rows]
        compared = Comparing(uses, rows, self.band, bool(self.rule.released))
        denoiser(step.beside(step.condition[rows]).rerouted(compared.remember))
        return denoiser(filtered.rerouted(compared.change))

    def views(self, step: Step) -> list[View | None]:
        """What it sees in each prompt of a step; nothing in one without tokens.

        Raises:
            ExpungeError: the tokens of a prompt aren't known.
        """
        rows, reader = step.condition.rows[step.prompted], step.reader
        assert reader is not None
        found: list[View | None] = []
        for own, tokens in zip(rows, reader(rows), strict=True):
            if tokens is None:
                raise ExpungeError(
                    "safree reads the tokens of a prompt, and this one came as an embedding that "
                    "the model's text encoder didn't give; give the prompt itself, or read it "
                    "after the edit was applied"
                )
            ids = [max(token, 0) for token in tokens]  # a learnt token has none: it is masked
            copies = reader.whole([ids, *masked(ids)]) if ids else None
            found.append(None if copies is None else self.view(own, copies[1:], copies[0]))
        return found

    def view(self, rows: Tensor, copies: Tensor, whole: Tensor) -> View:
        """What it sees in one prompt; see ``safree_text.view``."""
        return view(self.rule, rows, copies, whole, self._projector)

    @cached_property
    def _projector(self) -> Tensor:
        """``P_C``, on the CPU: a prompt is small, and not every device has double precision."""
        return self.rule.projector(self.concept)

    def tensors(self) -> dict[str, Tensor]:
        negative = self.negative.tensors() if self.negative else {}
        rule = torch.tensor(self.rule, dtype=torch.float64)
        band = torch.tensor(get_args(Band).index(self.band))
        return {"concept": self.concept, "rule": rule, "band": band, **negative}

    @classmethod
    def of(cls, names: tuple[str, ...], tensors: Mapping[str, Tensor]) -> "Safree":
        alpha, alone, most, centre, slope, validated, released = tensors["rule"].tolist()
        rule = Rule(alpha, alone, int(most), centre, slope, int(validated), int(released))
        negative = NegativePrompt.of((), tensors) if "empty:rows" in tensors else None
        return cls(tensors["concept"], rule, negative, get_args(Band)[int(tensors["band"])])


class _Plan:
    """Which prompts of a batch are filtered in which step."""

    def __init__(self, guard: Safree, step: Step) -> None:
        rows, views = step.condition.rows, guard.views(step)
        self.plain = step.condition
        before = len(rows) - len(views)
        kept = [*rows[:before], *(r if v is None else v.filtered for r, v in _beside(rows, views))]
        self.filtered = Condition(torch.stack(kept), self.plain.pooled, self.plain.extra)
        seen = [-1.0 if v is None or not bool(v.trigger.any()) else v.last_step for v in views]
        self.last = torch.tensor([-1.0] * before + seen)
        self.made: dict[tuple[bool, ...], Condition] = {}

    def at(self, number: int) -> Condition:
        """The condition of a step; the same object for the same prompts."""
        uses = self.last >= number
        if not bool(uses.any()):
            return self.plain
        key = tuple(uses.tolist())
        if key not in self.made:
            self.made[key] = where(uses.to(self.plain.rows.device), self.filtered, self.plain)
        return self.made[key]


def _beside(rows: Tensor, views: list[View | None]) -> list[tuple[Tensor, View | None]]:
    return list(zip(rows[len(rows) - len(views) :], views, strict=True))
