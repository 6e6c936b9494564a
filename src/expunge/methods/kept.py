"""The embeddings of prompts to keep, in the form that each kind of method needs."""

from collections.abc import Callable, Sequence

from torch import Tensor

from expunge.algebra.ridge import kept_rows
from expunge.concepts import Context, Policy
from expunge.errors import ExpungeError
from expunge.models import Model
from expunge.prior import mean_moment

PROMPTS = 64
"""Number of prompts encoded at a time."""


def kept_count(name: str, size: int, share: float) -> int:
    """How many of ``size`` rows a share is; none or all only if the share is 0 or 1.

    Raises:
        ExpungeError: there is only one row, which can't be shared.
    """
    if share in (0, 1):
        return round(size * share)
    if size < 2:
        raise ExpungeError(
            f"keep_share: {share:g} of {name}={size} leaves nothing to erase or nothing to keep; "
            f"raise {name} to 2 or more, or set keep_share=0"
        )
    return min(size - 1, max(1, round(size * share)))


def kept_with_empty(policy: Policy, contexts: tuple[Context, ...]) -> tuple[str, ...]:
    """The empty prompt and everything that a policy keeps, bare and in sentences, each once."""
    return tuple(dict.fromkeys(("", *policy.kept_prompts(contexts))))


def weighed_rows(
    encode: Callable[[Sequence[str]], Tensor], prompts: Sequence[str], weight: float, width: int
) -> Tensor:
    """Rows of some prompts, times the root of their weight, ``[kept, width]`` float64.

    Args:
        encode: the rows to keep of a few prompts, ``[..., width]``.
        prompts: what is kept.
        weight: the weight of each row.
        width: the width of a row, needed if there is none.
    """
    blocks = (prompts[at : at + PROMPTS] for at in range(0, len(prompts), PROMPTS))
    return kept_rows((encode(block) for block in blocks), weight, width)


def kept_words(
    model: Model, policy: Policy, contexts: tuple[Context, ...], scale: float
) -> dict[str, Tensor]:
    """The mean Gram matrix ``kept_words`` of the embeddings to keep, ``[width, width]``.

    Empty if nothing is to be kept, or with a weight ``scale`` of 0.
    """
    prompts = policy.kept_prompts(contexts) if scale else ()
    return {"kept_words": mean_moment(model, prompts)} if prompts else {}
