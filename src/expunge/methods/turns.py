"""Which picture a training shows next."""

from collections.abc import Sequence
from typing import TypeVar

import torch

from expunge.concepts import Concept
from expunge.errors import ExpungeError
from expunge.seeding import generator

Prompt = TypeVar("Prompt")


def picture_in_turn(seed: int, purpose: str, counts: Sequence[int], turn: int) -> tuple[int, int]:
    """The number of a concept and of one of its pictures.

    Concepts take turns. Each shows all its pictures, in random order, before it repeats one.

    Args:
        seed: decides the order, together with ``purpose``.
        purpose: what the order is for.
        counts: how many pictures each concept has.
        turn: the number of the turn, from 0.
    """
    round_, which = divmod(turn, len(counts))
    epoch, at = divmod(round_, counts[which])
    order = torch.randperm(counts[which], generator=generator(seed, purpose, which, epoch))
    return which, int(order[at])


def wordings_in_turn(
    concept: Concept, prompts: Sequence[Prompt], trajectories: int, draws: torch.Generator
) -> list[Prompt]:
    """What each trajectory of a concept starts from.

    Its wordings take turns, and so do the prompts of a wording, in random order.

    Args:
        concept: what is erased.
        prompts: wording by wording, equally many of each.
        trajectories: how many there are.
        draws: decides the order.

    Raises:
        ExpungeError: there are fewer trajectories than wordings.
    """
    count = len(concept.phrases)
    if trajectories < count:
        raise ExpungeError(
            f"trajectories: {trajectories} can't show the {count} wordings of "
            f"{concept.target!r}; raise it to {count} or more"
        )
    each = len(prompts) // count
    order = torch.randperm(each, generator=draws).tolist()
    return [prompts[at % count * each + order[at // count % each]] for at in range(trajectories)]
