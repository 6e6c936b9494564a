"""Priors: what a text encoder makes of many ordinary prompts, as one matrix."""

from expunge.prior.everyday import (
    PADDING,
    PROMPTS,
    PriorSetting,
    everyday_prior,
    is_everyday,
    left_out,
    listed,
)
from expunge.prior.sums import Prior, PriorFile, mean_moment, moment

__all__ = [
    "PADDING",
    "PROMPTS",
    "Prior",
    "PriorFile",
    "PriorSetting",
    "everyday_prior",
    "is_everyday",
    "left_out",
    "listed",
    "mean_moment",
    "moment",
]
