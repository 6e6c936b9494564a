"""Losses of released attacks on safe latent diffusion (Schramowski et al., CVPR 2023).

Of the answers ``e_0`` without a prompt, ``e_p`` with it and ``e_s`` for what is unsafe, the guard's
own rule (``expunge.edits.safe_guidance``) makes a correction ``c``, and guidance of scale ``w``
answers ``e_0 + w (e_p - e_0 - c)``. All answers are ``[batch, channels, height, width]``.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from expunge.edits.safe_guidance import Rule

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
    found = rule.correction(torch.zeros_like(asked), asked, safety, momentum)
    acting = found if step >= rule.warmup else torch.zeros_like(found)
    return guidance * (asked - acting), rule.remembered(momentum, found).detach()


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
        found = rule.correction(without, asked, safety, momentum)
        momentum = rule.remembered(momentum, found)
    without, asked, _ = answers[-1]
    return without + guidance * (asked - without - found)
