"""Priors: what a text encoder makes of many ordinary prompts, as one matrix."""

from expunge.prior.everyday import PROMPTS, PriorSetting, everyday_prior, is_everyday, left_out
from expunge.prior.sums import Prior, PriorFile, mean_moment, moment

__all__ = [
    "PROMPTS",
    "Prior",
    "PriorFile",
    "PriorSetting",
    "everyday_prior",
    "is_everyday",
    "left_out",
    "mean_moment",
    "moment",
]
