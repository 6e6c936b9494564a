"""One ridge system for a whole UNet.

Every closed-form method asks, for each key and value projection ``W`` of the cross-attention::

    min_W'  sum_i w_i |W' s_i - W t_i|^2  +  |W' P^T - W P^T|^2  +  lam |W' - W|^2

with source rows ``s_i`` to move, the target rows ``t_i`` whose outputs they get, and rows ``P`` to
keep. The solution is ``W' = W M`` with the same ``M`` for every ``W``::

    A = lam I + sum_i w_i s_i s_i^T + P^T P         M = I + (sum_i w_i (t_i - s_i) s_i^T) A^-1

so one factorisation serves all layers, ``M - I`` has no higher rank than there are source rows, and
all that the solution needs to know of them are two sums, which add up from one set of rows to the
next. The system is ill conditioned (about 1e5 for real text encoders): everything is in float64.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from expunge.errors import ExpungeError

NEGLIGIBLE = 1e-10
"""Directions below this share of the largest singular value are rounding errors."""
HOPELESS = 1e14
"""At this condition number, a float64 solution has no reliable digit left."""
PANEL = 128
"""Columns of a Gram matrix computed at a time; what lies below them is copied."""


class SharedFactors(NamedTuple):
    """``M = I + left^T right``: both ``[rank, width]``, float64."""

    left: Tensor
    right: Tensor

    def __matmul__(self, after: "SharedFactors") -> "SharedFactors":
        """The product of both matrices, with the rows of both."""
        left = after.left + after.left @ self.right.T @ self.left
        return SharedFactors(torch.cat([self.left, left]), torch.cat([self.right, after.right]))

    def compressed(self) -> "SharedFactors":
        """The same product with as few rows as it has directions.

        Rows of padding are nearly multiples of each other, so there are far fewer of them.
        """
        left_basis, left_part = torch.linalg.qr(self.left.T)
        right_basis, right_part = torch.linalg.qr(self.right.T)
        outer, values, inner = torch.linalg.svd(left_part @ right_part.T)
        rank = max(1, int((values > NEGLIGIBLE * values[0]).sum()))
        left = (left_basis @ (outer[:, :rank] * values[:rank])).T
        return SharedFactors(left.contiguous(), (inner[:rank] @ right_basis.T).contiguous())


@dataclass(frozen=True, eq=False)
class Statistics:
    """The two sums through which rows enter the system; they can be added and subtracted."""

    gram: Tensor
    """``sum_i w_i s_i s_i^T``, ``[width, width]`` float64."""
    shift: Tensor
    """``sum_i w_i (t_i - s_i) s_i^T``, ``[width, width]`` float64."""

    def __add__(self, other: "Statistics") -> "Statistics":
        return Statistics(self.gram + other.gram, self.shift + other.shift)

    def __sub__(self, other: "Statistics") -> "Statistics":
        return Statistics(self.gram - other.gram, self.shift - other.shift)

    def tensors(self) -> dict[str, Tensor]:
        """What a file holds; of the symmetric matrix, only the upper triangle."""
        row, column = torch.triu_indices(*self.gram.shape, device=self.gram.device)
        return {"gram": self.gram[row, column], "shift": self.shift}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Statistics":
        """The sums that ``tensors()`` was taken from."""
        upper, shift = tensors["gram"], tensors["shift"]
        row, column = torch.triu_indices(*shift.shape, device=shift.device)
        whole = torch.empty_like(shift)
        whole[row, column] = whole[column, row] = upper
        return cls(whole, shift)


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows to move: ``sources`` and ``targets`` ``[rows, width]``, ``weights`` ``[rows]`` > 0."""

    sources: Tensor
    targets: Tensor
    weights: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """What a file holds."""
        return dict(vars(self))

    @property
    def statistics(self) -> Statistics:
        # sum w t s^T takes one product for each different target, and many share theirs.
        targets, which = _distinct(self.targets)
        scale = self.weights.double().sqrt()[:, None]
        sources = scale * self.sources
        total = gram(sources)
        sums = torch.zeros(targets.shape, dtype=torch.float64, device=targets.device)
        sums.index_add_(0, which, sources.mul_(scale))
        return Statistics(total, targets.double().T @ sums - total)

    @property
    def scaled(self) -> tuple[Tensor, Tensor]:
        """Shifts ``t - s`` and sources ``s`` times the root of their weight, float64."""
        scale = self.weights.double().sqrt()[:, None]
        sources = scale * self.sources
        return (scale * self.targets).sub_(sources), sources


def _distinct(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The different ones among rows ``[rows, width]``, and for each row which of them it is."""
    sums, which = torch.unique(rows.double().sum(1), return_inverse=True)
    different = rows.new_empty(len(sums), rows.shape[1]).index_copy_(0, which, rows)
    if torch.equal(different[which], rows):  # nearly always: equal sums of different rows are rare
        return different, which
    different, which = torch.unique(rows, dim=0, return_inverse=True)
    return different, which


Moved = Rows | Statistics
"""Rows to move: the rows themselves if they are fewer than wide, else their sums."""


def joined(parts: Sequence[Moved]) -> Moved:
    """All rows together, in the smaller of the two forms."""
    width = (parts[0].sources if isinstance(parts[0], Rows) else parts[0].shift).shape[1]
    rows = [part for part in parts if isinstance(part, Rows)]
    if len(rows) == len(parts) and sum(len(part.sources) for part in rows) < width:
        columns = zip(*((part.sources, part.targets, part.weights) for part in rows), strict=True)
        return Rows(*(torch.cat(column) for column in columns))
    first, *rest = (part.statistics if isinstance(part, Rows) else part for part in parts)
    return sum(rest, first)


def gram(*blocks: Tensor) -> Tensor:
    """``sum B^T B`` over blocks of shape ``[..., width]``: ``[width, width]`` float64."""
    width = blocks[0].shape[-1]
    total = torch.zeros(width, width, dtype=torch.float64, device=blocks[0].device)
    panels = [(start, start + PANEL) for start in range(0, width, PANEL)]
    for block in blocks:
        rows = block.double().reshape(-1, width)
        for start, end in panels:
            total[start:end, start:].addmm_(rows[:, start:end].T, rows[:, start:])
    for start, end in panels:
        total[end:, start:end] = total[start:end, end:].T
    return total


def kept_rows(blocks: Iterable[Tensor], weight: float, width: int) -> Tensor:
    """Rows ``P`` ``[kept, width]`` float64 with ``P^T P`` the weighted Gram matrix of all blocks.

    If the rows are fewer than wide, they are the rows themselves, times the root of the weight.
    """
    few: list[Tensor] = []
    total, count = torch.zeros(width, width, dtype=torch.float64), 0
    for block in blocks:
        few.append(block.double().reshape(-1, width))
        count += len(few[-1])
        if count >= width:
            total = total.to(block.device) + gram(*few)
            few = []
    if count >= width:
        return factor(weight * total)
    return weight**0.5 * torch.cat(few) if few else total[:0]


def factor(gram: Tensor) -> Tensor:
    """Rows ``R`` with ``R^T R`` equal to a Gram matrix; as many as its rank."""
    lower, failed = torch.linalg.cholesky_ex(gram)
    if not failed:
        whole: Tensor = lower.T.contiguous()
        return whole
    values, vectors = torch.linalg.eigh(gram)
    present = values > torch.finfo(torch.float64).eps * len(values) * values[-1]
    rows: Tensor = (values[present].sqrt() * vectors[:, present]).T
    return rows.contiguous()


def shared_factors(moved: Moved, kept: Tensor, lamb: float) -> SharedFactors:
    """The factors of ``M`` for rows to move, ``kept`` rows ``P`` ``[kept, width]``, and ``lam``.

    With fewer rows than they are wide the system is solved among the rows (Woodbury), else among
    their components.

    Raises:
        ExpungeError: the system is singular to working precision.
    """
    kept = kept.double()
    if isinstance(moved, Statistics):
        identity = _identity(moved.shift)
        matrix = moved.gram + gram(kept) + lamb * identity
        return SharedFactors(solve(matrix, moved.shift).T, identity)
    left, sources = moved.scaled
    count, width = sources.shape
    if lamb and count + len(kept) < width:
        rows = torch.cat([sources, kept])
        inner = rows @ rows.T + lamb * _identity(rows @ rows.T)
        right = solve(inner, rows.T)
        # (P^T P + lam I)^-1 P^T = P^T (P P^T + lam I)^-1, of which the first columns are wanted.
        return SharedFactors(left, right.T[:count])
    matrix = gram(sources, kept)
    matrix.diagonal().add_(lamb)
    return SharedFactors(left, solve(matrix, sources))


def solve(matrix: Tensor, rows: Tensor) -> Tensor:
    """``rows A^-1`` for a symmetric positive definite ``A``, both float64.

    Raises:
        ExpungeError: the system is singular to working precision.
    """
    lower, failed = torch.linalg.cholesky_ex(matrix)
    if bool(failed) or not (condition := _condition(matrix, lower)) < HOPELESS:
        condition = torch.linalg.cond(matrix).item() if bool(failed) else condition
        raise ExpungeError(
            f"the ridge system can't be solved (condition number {condition:.1e}); use a larger "
            "lamb, or more to keep"
        )
    solution: Tensor = torch.cholesky_solve(rows.double().T, lower).T
    return solution


def _condition(matrix: Tensor, lower: Tensor) -> float:
    """An estimate from below of the 2-norm condition number, by a few power iterations each way."""
    large = small = torch.ones(len(matrix), 1, dtype=torch.float64, device=matrix.device)
    for _ in range(4):
        large = matrix @ (large / large.norm())
        small = torch.cholesky_solve(small / small.norm(), lower)
    return float(large.norm() * small.norm())


def _identity(like: Tensor) -> Tensor:
    return torch.eye(len(like), dtype=torch.float64, device=like.device)
