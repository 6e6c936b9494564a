"""SAFREE: prompts are turned away from the concept before they are drawn (Yoon et al., ICLR 2025).

Each token that leads to the concept gets a row outside of the concept's span, in as many of the
first steps as the prompt is found to need. ``edits.safree_text`` has the whole rule. Nothing is
computed beforehand but the rows of the concept's phrases. This is a guard, not a change of weights:
anyone with the pipeline can remove it.
"""

from collections.abc import Iterable
from typing import Any, ClassVar

from pydantic import Field

from expunge.concepts import Policy
from expunge.edits.negative_prompt import NegativePrompt
from expunge.edits.payloads import Payload
from expunge.edits.safree import Safree
from expunge.edits.safree_features import Band
from expunge.edits.safree_text import Rule
from expunge.method.base import Method, Need, PolicyPart
from expunge.models import Model


class SAFREE(Method):
    """Filters prompts by their tokens; all phrases of what is erased span the concept."""

    name: ClassVar[str] = "safree"
    title: ClassVar[str] = "SAFREE"
    year: ClassVar[int] = 2025
    url: ClassVar[str] = "https://arxiv.org/abs/2410.12761"
    needs: ClassVar[frozenset[Need]] = frozenset({"text"})
    released: ClassVar[dict[str, Any]] = {"negative_prompt": True}
    corrected_only: ClassVar[tuple[str, ...]] = ("alone",)
    always_ignored: ClassVar[frozenset[PolicyPart]] = frozenset({"keep", "anchor"})
    released_synonyms: ClassVar[bool] = True

    alpha: float = Field(0.01, gt=-1, allow_inf_nan=False)
    """How much farther from the concept than the other copies a prompt must be without a token for
    that to be a trigger, as a share."""
    alone: float = Field(0.1, ge=0, le=1)
    """A prompt of one token is a trigger if its distance from the concept is at most this share of
    its length."""
    self_validation: bool = True
    """The filter ends after as many steps as the prompt needs; otherwise it acts in all."""
    most: int = Field(10, ge=0)
    """The largest number of the last filtered step, counted from 0."""
    centre: float = Field(5.333, allow_inf_nan=False)
    """Ten times the move of a prompt at which half of those steps are filtered."""
    slope: float = Field(2.5, gt=0, allow_inf_nan=False)
    """How fast the number of steps grows with the move."""
    re_attention: Band = "off"
    """Skip features of the filtered prompt are damped where they stand out against those of the
    prompt as it is, which is drawn beside it: in "low" or "high" frequencies, or "plain": all low
    ones."""
    negative_prompt: bool = False
    """All phrases are the negative prompt as well."""
    separator: str = ", "
    """The text between the phrases in the negative prompt."""

    def erased_prompts(self, policy: Policy) -> Iterable[str]:
        """The negative prompt, if there is one."""
        return [self.separator.join(policy.phrases)] if self.negative_prompt else []

    def rule(self) -> Rule:
        """The numbers of the rule."""
        return Rule(
            self.alpha,
            self.alone,
            self.most,
            self.centre,
            self.slope,
            validated=int(self.self_validation),
            released=int(self.fidelity == "original"),
        )

    def solve(self, model: Model, policy: Policy, seed: int) -> Payload:
        phrases = list(policy.phrases)
        ends = [model.last_token(phrase) + 1 for phrase in phrases]
        concept = model.encode_rows(phrases, ends).detach()
        negative = None
        for text in self.erased_prompts(policy):
            empty = model.unconditional().detach()
            negative = NegativePrompt(empty, model.condition([text]).detach())
        return Safree(concept, self.rule(), negative, self.re_attention)
