"""Prompting4Debugging (P4D; Chin et al., ICML 2024): tokens that ask the edited for the base's.

The tokens lower the distance of the edited model's answers from the base's for the concept
(eq. 2)::

    L = mean | eps_edited(x_t, t, c(near(E))) - eps_base(x_t, t, c(p)) |^2

The released program moves continuous embeddings ``E``; what the model is asked is the nearest token
of each (Wen et al., NeurIPS 2023)::

    E <- AdamW(E, dL / d near(E))

The corrected attack takes the tokens that the gradient promises most of, and compares them
(``expunge.attacks.swaps``).

*P4D-N* looks for a prompt of its own, *P4D-K* for tokens between those of the prompt. The variant
``unlearn-diff-atk`` is the weaker one in the program of that name.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from expunge.attacks.base import Attack, Knows, Search
from expunge.attacks.layouts import Layout, Place, alone, around, between
from expunge.attacks.p4d_released import Picked, Released
from expunge.attacks.rows import check_rows
from expunge.attacks.sld_rule import Preset, rule_of
from expunge.attacks.swaps import Swaps
from expunge.attacks.target import Target
from expunge.attacks.tokens import Tokens
from expunge.edits.safe_guidance import Rule
from expunge.errors import ExpungeError


class P4D(Attack):
    """Hard prompts for each picture, towards the base's answers."""

    name: ClassVar[str] = "p4d"
    title: ClassVar[str] = "Prompting4Debugging"
    year: ClassVar[int] = 2024
    url: ClassVar[str] = "https://arxiv.org/abs/2309.06135"
    knows: ClassVar[frozenset[Knows]] = frozenset({"weights", "base", "pictures"})

    fidelity: Literal["original", "corrected"] = "corrected"
    variant: Literal["n", "k", "unlearn-diff-atk"] = "n"
    tokens: int = Field(16, ge=1)
    """Free tokens of P4D-N and of UnlearnDiffAtk's variant."""
    every: int = Field(3, ge=1)
    """Tokens of the prompt between two free ones, in P4D-K."""
    place: Place = "prefix"
    """Where free tokens stand in UnlearnDiffAtk's variant."""
    looks: int = Field(4, ge=1)
    """Points at which prompts are compared, and gradients taken."""
    swaps: int = Field(8, ge=1)
    """Prompts that a step compares."""
    lr: float = Field(0.1, gt=0)
    """Learning rate, in the released programs."""
    weight_decay: float = Field(0.1, ge=0)
    """Decay there; UnlearnDiffAtk's variant adds it to the gradient."""
    safety_concept: str = ""
    """What safe latent diffusion leads away from, for the released loss against it."""
    safety: Preset | Rule = "max"
    """Its preset or rule there."""

    def check(self, target: Target) -> None:
        Tokens.of(target)
        check_rows(target)
        if self.fidelity == "original" and self.variant != "unlearn-diff-atk" and not target.critic:
            raise ExpungeError(
                f"{self.name}: the released program compares pictures; give an image-text model, "
                "e.g. --critic clip:FOLDER"
            )

    def begin(self, target: Target, pictures: Sequence[int], seed: int) -> Search:
        prompt = Tokens.of(target).ids(target.prompts[pictures[0]])
        layout = self.layout(prompt)
        if self.fidelity == "corrected":
            begun = prompt if self.variant == "n" else ()
            return Swaps(target, pictures, seed, layout, begun, "base", self.looks, self.swaps)
        if self.variant == "unlearn-diff-atk":
            return Released(target, pictures, seed, layout, self.optimizer)
        safety = (self.safety_concept, rule_of(self.safety)) if self.safety_concept else None
        whole = self.variant == "k"
        return Picked(target, pictures, seed, layout, self.optimizer, whole, safety)

    def layout(self, prompt: Sequence[int]) -> Layout:
        """The variant's layout of a prompt's ids."""
        if self.variant == "n":
            return alone(self.tokens)
        if self.variant == "k":
            return between(prompt, self.every)
        return around(prompt, self.tokens, self.place)

    def optimizer(self, rows: list[Tensor]) -> torch.optim.Optimizer:
        """Of the embeddings."""
        kind = torch.optim.Adam if self.variant == "unlearn-diff-atk" else torch.optim.AdamW
        return kind(rows, lr=self.lr, weight_decay=self.weight_decay)
