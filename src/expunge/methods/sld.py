"""SLD: guidance that turns away from the concept (Schramowski et al., CVPR 2023)::

    e_0 + g (e_p - e_0 - c)      c = min(1, S |e_p - e_s|) (e_s - e_0) + s v

Each step asks the denoiser for the concept as well, and takes the direction towards it from the
direction towards the prompt, in those numbers where both agree (section 3). ``SafeGuidance`` has
the whole rule. Nothing is computed beforehand. This is a guard, not a change of weights: without
guidance it does nothing, and anyone with the pipeline can remove it.
"""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from expunge.concepts import Policy
from expunge.edits.payloads import Payload
from expunge.edits.safe_guidance import Rule, SafeGuidance
from expunge.method.base import Method, Need, PolicyPart
from expunge.models import Model


class SLD(Method):
    """Guidance away from all phrases of what is erased, where they show; medium by default."""

    name: ClassVar[str] = "sld"
    title: ClassVar[str] = "SLD"
    year: ClassVar[int] = 2023
    url: ClassVar[str] = "https://arxiv.org/abs/2211.05105"
    needs: ClassVar[frozenset[Need]] = frozenset({"text"})
    families: ClassVar[tuple[str, ...]] = ("sd", "sdxl")
    always_ignored: ClassVar[frozenset[PolicyPart]] = frozenset({"keep", "anchor"})
    released_synonyms: ClassVar[bool] = True
    original_only: ClassVar[tuple[str, ...]] = ("warmup_by",)

    warmup: int = Field(10, ge=0)
    """The first step in which it acts, counted from 0."""
    scale: float = Field(1000.0, ge=0, allow_inf_nan=False)
    """How fast it reaches its full strength as prompt and concept differ."""
    threshold: float = Field(0.01, allow_inf_nan=False)
    """How far above the concept's prediction the prompt's may lie for it to act."""
    momentum_scale: float = Field(0.3, ge=0, le=1)
    """The share of the direction of earlier steps."""
    momentum_beta: float = Field(0.4, ge=0, lt=1)
    """How much of that direction each step keeps."""
    warmup_by: Literal["step", "time"] = "step"
    """What the warm-up counts; "time" acts down to that time, as UnlearnDiffAtk's copy does."""
    separator: str = ", "
    """The text between the phrases."""

    @model_validator(mode="after")
    def _released_scale(self) -> Self:
        if self.fidelity == "original" and self.scale < 1:
            raise ValueError("scale: below 1 the released program does nothing; raise it")
        return self

    def erased_prompts(self, policy: Policy) -> list[str]:
        """The one text of the concept."""
        return [self.separator.join(policy.phrases)]

    def rule(self) -> Rule:
        """The numbers of the rule."""
        return Rule(
            self.warmup,
            self.scale,
            self.threshold,
            self.momentum_scale,
            self.momentum_beta,
            by_time=float(self.warmup_by == "time"),
        )

    def solve(self, model: Model, policy: Policy, seed: int) -> Payload:
        return SafeGuidance(model.condition(self.erased_prompts(policy)).detach(), self.rule())
