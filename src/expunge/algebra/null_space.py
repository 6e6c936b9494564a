"""Null spaces: directions along which a matrix can change and chosen rows notice nothing.

If ``S e = 0`` for a row ``e`` of an embedding, then ``(W + C S) e = W e`` whatever ``C`` is. All is
float64. Directions in which the rows are shorter than ``tolerance`` times the longest row count as
none: a text encoder's single precision makes such directions out of equal rows.

Unless it says otherwise, a space is given as orthonormal rows, ``[dimension, width]``.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

TOLERANCE = 1e-5

PIVOT = 1e-9
"""A column that is less than this away from the span of those before it adds nothing."""


def null_space(rows: Tensor, within: Tensor | None = None, tolerance: float = TOLERANCE) -> Tensor:
    """A basis of the space orthogonal to all ``rows`` ``[rows, width]``.

    ``within`` is a basis of the space to stay in; by default the whole space.
    """
    rows = rows.double()
    space = _whole(rows) if within is None else within
    if not len(space) or not len(rows):
        return space
    # R has the directions of the rows in few numbers, the rest of Q is orthogonal to all of them.
    q, r = torch.linalg.qr(space @ rows.T, mode="complete")
    count = min(r.shape)
    left, values, _ = torch.linalg.svd(r[:count], full_matrices=False)
    unseen = values <= tolerance * rows.norm(dim=1).max()
    kept = torch.cat([q[:, :count] @ left[:, unseen], q[:, count:]], 1)
    return kept.T @ space


def null_spaces(
    blocks: Sequence[Tensor], within: Tensor, tolerance: float = TOLERANCE
) -> list[Tensor]:
    """For each block of rows, each ``[rows, width]``, the null space of all the *other* ones.

    The blocks are halved: what is orthogonal to one half is the common start of the other half's
    blocks. That takes the work of about two null spaces of all rows, however many blocks there are.
    """
    if len(blocks) == 1:
        return [within]
    halves = blocks[: len(blocks) // 2], blocks[len(blocks) // 2 :]
    spaces: list[Tensor] = []
    for own, others in (halves, halves[::-1]):
        spaces += null_spaces(own, null_space(torch.cat([*others]), within, tolerance), tolerance)
    return spaces


def fitting(
    blocks: Iterable[Tensor],
    within: Tensor,
    enough: Callable[[Tensor], bool],
    tolerance: float = TOLERANCE,
) -> int:
    """How many blocks, from the first on, leave a null space that is ``enough``."""
    space, count = within, 0
    for block in blocks:
        space = null_space(block, space, tolerance)
        if not enough(space):
            break
        count += 1
    return count


def leading(rows: Tensor, within: Tensor, most: int = 0, tolerance: float = TOLERANCE) -> Tensor:
    """The directions that ``rows`` ``[rows, width]`` have inside a space, strongest first.

    At most ``most`` directions, unless it is 0.
    """
    rows = rows.double()
    if not len(within) or not len(rows):
        return within[:0]
    seen = torch.linalg.qr(rows @ within.T, mode="r").R
    _, values, right = torch.linalg.svd(seen, full_matrices=False)
    count = int((values > tolerance * rows.norm(dim=1).max()).sum())
    found: Tensor = right[: min(count, most) if most else count] @ within
    return found


def rref(rows: Tensor, tolerance: float = TOLERANCE) -> Tensor:
    """The null space as elimination by hand gives it: unit vectors, not orthogonal to each other.

    The reduced row echelon form has a unit column for each pivot, and each other column ``f`` is
    free: its vector is 1 at ``f``, 0 at the other free columns, and at the pivots what cancels
    column ``f``. With the pivots first, ``rows = [A1 | A2]``, these are the rows of
    ``[-(A1^-1 A2)^T | I]``, each then scaled to unit length (SepME's solution sets).

    Returns:
        ``[dimension, width]``, a vector for each free column in their order.
    """
    rows = rows.double()
    _, values, right = torch.linalg.svd(rows, full_matrices=False)
    spanned = right[values > tolerance * rows.norm(dim=1).max()]
    width = rows.shape[1]
    pivots = _pivots(spanned)
    free = sorted(set(range(width)) - set(pivots))
    vectors = rows.new_zeros(len(free), width)
    vectors[range(len(free)), free] = 1.0
    vectors[:, pivots] = -torch.linalg.solve(spanned[:, pivots], spanned[:, free]).T
    unit: Tensor = vectors / vectors.norm(dim=1, keepdim=True)
    return unit


def _pivots(spanned: Tensor) -> list[int]:
    """The columns of ``[rank, width]`` that aren't combinations of those before them."""
    rank = len(spanned)
    found: list[int] = []
    basis = spanned.new_zeros(rank, rank)
    for number, column in enumerate(spanned.T):
        if len(found) == rank:
            break
        known = basis[:, : len(found)]
        rest = column - known @ (known.T @ column)
        rest = rest - known @ (known.T @ rest)  # once more, for what rounding left
        if (length := rest.norm()) > PIVOT:
            basis[:, len(found)] = rest / length
            found.append(number)
    return found


def _whole(rows: Tensor) -> Tensor:
    return torch.eye(rows.shape[1], dtype=torch.float64, device=rows.device)
