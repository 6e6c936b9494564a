"""The rows of prompts to keep, as closed forms take them."""

from collections.abc import Callable, Sequence

from torch import Tensor

from expunge.algebra.ridge import kept_rows
from expunge.concepts import Context, Policy

PROMPTS = 64
"""Prompts encoded at a time."""


def kept_with_empty(policy: Policy, contexts: tuple[Context, ...]) -> tuple[str, ...]:
    """The empty prompt, and all that a policy keeps, also in sentences; each once."""
    return tuple(dict.fromkeys(("", *policy.kept_prompts(contexts))))


def weighed_rows(
    encode: Callable[[Sequence[str]], Tensor], prompts: Sequence[str], weight: float, width: int
) -> Tensor:
    """Rows of some prompts, times the root of their weight, ``[kept, width]`` float64.

    Args:
        encode: gives the rows that matter of a few prompts, ``[..., width]``.
        prompts: what is kept.
        weight: of each row.
        width: of a row, for the case that there is none.
    """
    blocks = (prompts[at : at + PROMPTS] for at in range(0, len(prompts), PROMPTS))
    return kept_rows((encode(block) for block in blocks), weight, width)
