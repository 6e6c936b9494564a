"""One ridge system for a whole UNet.

Every closed-form method asks, for each key and value projection ``W`` of the cross-attention,

    min_W'  a |W' C^T - W T^T|^2  +  p |W' P^T - W P^T|^2  +  lam |W' - W|^2

with rows ``C`` to move, the rows ``T`` whose outputs they get, and rows ``P`` to keep. The
solution is ``W' = W M`` with the same ``M`` for every ``W``:

    A = lam I + a C^T C + p P^T P         M = I + a (T - C)^T (C A^-1)

so one Cholesky factor of ``A`` serves all layers, and ``M - I`` has the rank of ``C`` at most.
The system is ill conditioned (about 1e5 for real text encoders): everything is in float64.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from expunge.errors import ExpungeError

NEGLIGIBLE = 1e-10
"""Share of the largest singular value below which a direction is rounding, not an edit."""


class SharedFactors(NamedTuple):
    """``M = I + left^T right``: both ``[rank, width]``, float64."""

    left: Tensor
    right: Tensor

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


def gram(rows: Tensor) -> Tensor:
    """``rows^T rows`` in float64, ``[width, width]``, for ``rows`` of shape ``[..., width]``."""
    flat = rows.double().reshape(-1, rows.shape[-1])
    return flat.T @ flat


def system(sources: Tensor, kept: Tensor, *, erase_scale: float, lamb: float) -> Tensor:
    """``A = lam I + a C^T C + kept``, all ``[width, width]``; ``kept`` is ``p P^T P``."""
    identity = torch.eye(kept.shape[0], dtype=torch.float64, device=kept.device)
    return lamb * identity + erase_scale * gram(sources) + kept


def solve(matrix: Tensor, rows: Tensor) -> Tensor:
    """``rows A^-1`` for a symmetric positive definite ``A``, both float64.

    Raises:
        ExpungeError: the system is singular to working precision.
    """
    factor, failed = torch.linalg.cholesky_ex(matrix)
    solution: Tensor = torch.cholesky_solve(rows.double().T, factor).T
    if bool(failed) or not bool(torch.isfinite(solution).all()):
        condition = torch.linalg.cond(matrix).item()
        raise ExpungeError(
            f"the ridge system can't be solved (condition number {condition:.1e}); use a larger "
            "lamb, or smaller erase and preserve scales"
        )
    return solution


def shared_factors(
    sources: Tensor, targets: Tensor, kept: Tensor, *, erase_scale: float, lamb: float
) -> SharedFactors:
    """The factors of ``M`` for ``sources`` C and ``targets`` T, both ``[rows, width]``."""
    right = solve(system(sources, kept, erase_scale=erase_scale, lamb=lamb), sources)
    return SharedFactors(erase_scale * (targets.double() - sources.double()), right).compressed()
