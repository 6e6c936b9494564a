"""Orthogonal projection onto the span of some rows.

All is float64, by a singular value decomposition of the rows themselves: their Gram matrix has the
square of their condition number. Directions in which the rows are shorter than ``tolerance`` times
the longest one count as none.
"""

import torch
from torch import Tensor

TOLERANCE = 1e-6


def span(rows: Tensor, tolerance: float = TOLERANCE) -> Tensor:
    """Orthonormal rows ``[rank, width]`` with the span of ``rows`` ``[rows, width]``."""
    rows = rows.double()
    if not len(rows):
        return rows
    _, values, right = torch.linalg.svd(rows, full_matrices=False)
    found: Tensor = right[values > tolerance * values.max()]
    return found


def projector(rows: Tensor, tolerance: float = TOLERANCE) -> Tensor:
    """``P = V^T V``, ``[width, width]``, where ``V`` is ``span(rows)``."""
    basis = span(rows, tolerance)
    return basis.T @ basis


def gram_projector(rows: Tensor) -> Tensor:
    """``P = C^T (C C^T)^+ C`` in the precision of the rows ``C``, as some programs compute it."""
    found: Tensor = rows.T @ torch.linalg.pinv(rows @ rows.T) @ rows
    return found
