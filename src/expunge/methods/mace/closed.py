"""MACE's closed forms: which rows are mapped where, and the fusion of the adapters."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from expunge.algebra.ridge import Rows, SharedFactors, solve
from expunge.concepts import Pair
from expunge.edits.payloads import Change, LowRank, SharedMatrix, Sum
from expunge.models import Model

PROMPTS = 16
"""Prompts encoded at a time; in double precision their rows take 8 MB for Stable Diffusion 1."""


def rows(model: Model, pairs: Sequence[Pair], *, all_words: bool = False) -> Rows:
    """Rows ``f`` of the erased prompts and the rows ``e`` that they are mapped to."""
    erased, anchors = [pair.erase for pair in pairs], [pair.anchor for pair in pairs]
    ids = zip(model.tokenized(erased), model.tokenized(anchors), strict=True)
    encoded = zip(model.encode(erased), model.encode(anchors), strict=True)
    sources, targets = [], []
    for (old, new), (before, after) in zip(ids, encoded, strict=True):
        everything = slice(None), slice(None)
        first, second = everything if all_words else aligned(old, new, len(before))
        sources.append(before[first])
        targets.append(after[second])
    moved = torch.cat(sources)
    weights = torch.ones(len(moved), dtype=torch.float64, device=moved.device)
    return Rows(moved, torch.cat(targets), weights)


def aligned(old: Sequence[int], new: Sequence[int], length: int) -> tuple[list[int], list[int]]:
    """Rows of two prompts that say the same: the words before and after a difference, the padding.

    ``old`` and ``new`` are token ids without start and end, ``length`` is that of the window. The
    tokens that differ are in neither list, and the longer padding is cut at its end.
    """
    shorter = min(len(old), len(new))
    same = [one == two for one, two in zip(old, new, strict=False)]
    before = [*same, False].index(False)
    same = [old[-1 - at] == new[-1 - at] for at in range(shorter - before)]
    after = [*same, False].index(False)
    # One more before for the start, and after for the end of the text.
    first, second = (
        [*range(before + 1), *range(1 + len(ids) - after, length)] for ids in (old, new)
    )
    count = min(len(first), len(second))
    return first[:count], second[:count]


def fusion(
    refined: SharedMatrix | LowRank,
    adapters: Sequence[LowRank],
    own: Iterable[Tensor],
    kept: Tensor,
    lamb: float,
) -> Sum:
    """The third stage: one change that does for each concept's prompts what its adapter does.

    With ``R`` the inverse in ``W*``, the change is the sum of changes seen through a matrix:
    ``W* - W = (W' - W) (lam I + sum_i C_i) R + sum_i B_i (D_i C_i R)``.

    Args:
        refined: the change of the first stage.
        adapters: what each adapter adds to the refined weights.
        own: ``C_i`` of each adapter, ``[width, width]`` float64; one at a time is enough.
        kept: ``s C``, ``[width, width]`` float64.
        lamb: lam.

    Raises:
        ExpungeError: the system is singular to working precision.
    """
    names, seen = refined.names, []
    sums = lamb * torch.eye(len(kept), dtype=torch.float64, device=kept.device)
    for one, second in zip(adapters, own, strict=True):
        sums += second
        seen.append(torch.cat([one.down[name] for name in names]).to(kept) @ second)
    sizes = [len(kept), *(len(one.down[name]) for one in adapters for name in names)]
    before, *rows = torch.split(solve(sums + kept, torch.cat([sums, *seen])), sizes)
    up = {name: torch.cat([one.up[name] for one in adapters], 1) for name in names}
    down = {name: torch.cat(rows[at :: len(names)]) for at, name in enumerate(names)}
    return Sum((_through(refined, before), LowRank(up, down)))


def _through(change: SharedMatrix | LowRank, matrix: Tensor) -> Change:
    """The change of each weight times ``matrix``, ``[width, width]`` float64."""
    if isinstance(change, SharedMatrix):
        factors = SharedFactors(change.left, change.right @ matrix)
        return SharedMatrix(change.names, *factors.compressed())
    return LowRank(
        change.up, {name: rows.to(matrix) @ matrix for name, rows in change.down.items()}
    )
