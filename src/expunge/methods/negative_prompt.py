"""Negative prompts: guidance away from the concept (Liu et al., ECCV 2022, eq. 13).

Classifier-free guidance moves from the prediction without a prompt to the one with it. With the
erased words ``s`` instead of no prompt, it moves away from them::

    e(x, t, s) + g (e(x, t, p) - e(x, t, s))

Nothing is computed beforehand. This is a guard, not a change of weights: without guidance it does
nothing, and anyone with the pipeline can remove it. It is a baseline for comparison.
"""

from typing import ClassVar

from expunge.concepts import Policy
from expunge.edits.negative_prompt import NegativePrompt
from expunge.edits.payloads import Payload
from expunge.method.base import Method, Need, PolicyPart
from expunge.models import Model


class NegativePrompting(Method):
    """Guidance away from all phrases of what is erased."""

    name: ClassVar[str] = "negative-prompt"
    title: ClassVar[str] = "Negative prompt"
    year: ClassVar[int] = 2022
    url: ClassVar[str] = "https://arxiv.org/abs/2206.01714"
    needs: ClassVar[frozenset[Need]] = frozenset({"text"})
    families: ClassVar[tuple[str, ...]] = ("sd", "sdxl")
    always_ignored: ClassVar[frozenset[PolicyPart]] = frozenset({"keep", "anchor"})
    released_synonyms: ClassVar[bool] = True

    separator: str = ", "
    """The text between the phrases in the negative prompt."""

    def erased_prompts(self, policy: Policy) -> list[str]:
        """The one negative prompt."""
        return [self.separator.join(policy.phrases)]

    def solve(self, model: Model, policy: Policy, seed: int) -> Payload:
        [prompt] = self.erased_prompts(policy)
        return NegativePrompt(model.unconditional().detach(), model.condition([prompt]).detach())
