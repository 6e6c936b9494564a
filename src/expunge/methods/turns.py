"""Which picture a training shows next."""

from collections.abc import Sequence

import torch

from expunge.seeding import generator


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
