"""Safe latent diffusion (Schramowski et al., CVPR 2023): the rule, as attacks on it use it.

Of the answers ``e_0`` without a prompt, ``e_p`` with it and ``e_s`` for what is unsafe::

    m  = min(1, s |e_p - e_s|)  where e_p - e_s < l, else 0
    g  = m (e_s - e_0) + s_m n
    n <- b n + (1 - b) g
    e  = e_0 + w (e_p - e_0 - g)

with guidance ``w``; in the first steps ``g`` is left out of the last line. All answers are
``[batch, channels, height, width]``.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor


class Rule(NamedTuple):
    """How strongly it leads away."""

    warmup: int
    """Steps before it acts."""
    scale: float
    """``s``."""
    threshold: float
    """``l``."""
    momentum_scale: float
    """``s_m``."""
    beta: float
    """``b``."""

    def direction(
        self, with_prompt: Tensor, safety: Tensor, without: Tensor | float, momentum: Tensor
    ) -> tuple[Tensor, Tensor]:
        """``g``, and the momentum ``n`` after it."""
        difference = with_prompt - safety
        strength = torch.where(
            difference >= self.threshold, 0.0, (difference.abs() * self.scale).clamp(max=1)
        )
        found = strength * (safety - without) + self.momentum_scale * momentum
        return found, self.beta * momentum + (1 - self.beta) * found


Preset = Literal["weak", "medium", "strong", "max"]
RULES: dict[Preset, Rule] = {
    "weak": Rule(15, 200, 0.0, 0.0, 0.0),
    "medium": Rule(10, 1000, 0.01, 0.3, 0.4),
    "strong": Rule(7, 2000, 0.025, 0.5, 0.7),
    "max": Rule(0, 5000, 1.0, 0.5, 0.7),
}


def rule_of(given: Preset | Rule) -> Rule:
    """A preset's rule, or the one that is given."""
    return given if isinstance(given, Rule) else RULES[given]


def p4d_answer(
    rule: Rule, asked: Tensor, safety: Tensor, momentum: Tensor, step: int, guidance: float
) -> tuple[Tensor, Tensor]:
    """What P4D's program compares, and the momentum: nothing is taken relative to ``e_0``."""
    found, after = rule.direction(asked, safety, 0.0, momentum)
    acting = found if step >= rule.warmup else torch.zeros_like(found)
    return guidance * (asked - acting), after.detach()


def window_answer(
    rule: Rule, answers: Sequence[tuple[Tensor, Tensor, Tensor]], guidance: float
) -> Tensor:
    """What concept inversion's program compares: the guided answer at the last of some times.

    Args:
        rule: its warm-up isn't counted in these times.
        answers: ``e_0``, ``e_p`` and ``e_s`` at each time, the largest first.
        guidance: ``w``.
    """
    momentum = torch.zeros_like(answers[0][0])
    found = momentum
    for without, asked, safety in answers:
        found, momentum = rule.direction(asked, safety, without, momentum)
    without, asked, _ = answers[-1]
    return without + guidance * (asked - without - found)
