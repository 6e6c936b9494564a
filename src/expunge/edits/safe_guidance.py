"""Safe latent diffusion as a guard: guidance that turns away from a concept where it shows.

With the predictions ``e_0`` without a prompt, ``e_p`` with it and ``e_s`` for the concept, guidance
of scale ``g`` follows ``e_0 + g (e_p - e_0 - [i >= D] c)`` in step ``i`` (Schramowski et al., CVPR
2023, section 3)::

    m = min(1, S |e_p - e_s|) where e_p - e_s < L, else 0
    c = m (e_s - e_0) + s v            v <- b v + (1 - b) c

That is what guidance makes of ``e_p - c``, so the scale needn't be known.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from expunge.edits.drawings import Step
from expunge.edits.guards import Denoiser
from expunge.models import Condition


class Rule(NamedTuple):
    """The numbers of the rule."""

    warmup: float
    """``D``: the first step in which it acts."""
    scale: float
    """``S``: how fast it reaches its full strength."""
    threshold: float
    """``L``: how far above the concept's prediction the prompt's may lie for it to act."""
    momentum_scale: float
    """``s``: the share of the direction of earlier steps."""
    momentum_beta: float
    """``b``: how much of that direction each step keeps."""
    by_time: float = 0.0
    """Not 0: ``D`` is a time, and it acts down to that one, as in UnlearnDiffAtk's copy."""

    @property
    def remembers(self) -> bool:
        """Whether what it does in a step depends on those before."""
        return self.momentum_scale != 0

    def acts(self, number: int, time: Tensor) -> bool:
        """Whether it acts in the step of this number, at this time."""
        return (float(time.max()) if self.by_time else number) >= self.warmup

    def correction(
        self, empty: Tensor, prompted: Tensor, concept: Tensor, before: Tensor
    ) -> Tensor:
        """``c``; all are ``[pictures, channels, height, width]``, ``before`` is ``v``."""
        apart = prompted - concept
        strength = torch.where(apart < self.threshold, (apart.abs() * self.scale).clamp(max=1), 0)
        return strength * (concept - empty) + self.momentum_scale * before

    def remembered(self, before: Tensor, correction: Tensor) -> Tensor:
        """The next step's ``v``."""
        return self.momentum_beta * before + (1 - self.momentum_beta) * correction


@dataclass(frozen=True, eq=False)
class SafeGuidance:
    """Takes the correction from the predictions with a prompt; without guidance nothing changes."""

    form: ClassVar[str] = "safe_guidance"
    reads_text: ClassVar[bool] = True
    reads_tokens: ClassVar[bool] = False
    reroutes: ClassVar[bool] = False

    concept: Condition
    """What guidance turns away from: one prompt."""
    rule: Rule

    @property
    def names(self) -> tuple[str, ...]:
        return ()

    def acts(self) -> bool:
        return self.rule.scale != 0

    def predict(self, denoiser: Denoiser, step: Step) -> Tensor:
        answer, guided = denoiser(step), step.guided
        acts = self.rule.acts(step.number, step.time)
        if guided is None or not (acts or self.rule.remembers):
            return answer
        empty, prompted = answer.float().chunk(2)
        beside = step.once(self, partial(self._beside, step))
        concept = denoiser(step.beside(beside, prompts=False)).float()
        before = step.drawing.remembered.get(self)
        before = torch.zeros_like(concept) if before is None else before
        correction = self.rule.correction(empty, prompted, concept, before)
        after = self.rule.remembered(before, correction)
        step.drawing.remembered[self] = after if step.drawing.differentiable else after.detach()
        if not acts:
            return answer
        turned = torch.where(guided.view(-1, 1, 1, 1), prompted - correction, prompted)
        return torch.cat([empty, turned]).to(answer.dtype)

    def _beside(self, step: Step) -> Condition:
        """The concept for every picture of a step, with whatever else a family is told."""
        told = step.condition[step.prompted]
        rows = told.rows
        concept = self.concept.to(rows.device, rows.dtype).expand(len(told))
        return Condition(concept.rows, concept.pooled, told.extra)

    def tensors(self) -> dict[str, Tensor]:
        pooled = {} if self.concept.pooled is None else {"pooled": self.concept.pooled}
        rule = torch.tensor(self.rule, dtype=torch.float64)
        return {"rows": self.concept.rows, **pooled, "rule": rule}

    @classmethod
    def of(cls, names: tuple[str, ...], tensors: Mapping[str, Tensor]) -> "SafeGuidance":
        concept = Condition(tensors["rows"], tensors.get("pooled"))
        return cls(concept, Rule(*tensors["rule"].tolist()))
