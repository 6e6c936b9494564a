"""Distances between two sets of pictures, by their features.

Heusel et al., "GANs trained by a two time-scale update rule converge to a local Nash
equilibrium", NeurIPS 2017 (Fréchet distance; with Inception's features it is the FID).
Bińkowski et al., "Demystifying MMD GANs", ICLR 2018 (KID).

Only compare numbers with the same feature network and the same reference set. The distance
from real pictures and the distance from the unedited model's pictures are different quantities.
"""

from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist
from typing import Literal

import torch
from torch import Tensor

from expunge.detectors.base import Identity
from expunge.errors import ExpungeError
from expunge.statistics.rates import Interval

Reference = Literal["real pictures", "the base model's pictures"]
FEW = 10
"""With fewer pictures, a kernel distance is mostly noise."""
_ROWS = 1024  # of a kernel matrix at once
_Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class SetDistance:
    """How far a set of pictures is from a reference set."""

    name: str
    value: float
    interval: Interval | None
    """95 %; ``None`` for a Fréchet distance, whose bias is larger than its spread."""
    n: int
    n_reference: int
    network: Identity
    """Whose features were compared."""
    reference: Reference

    def __str__(self) -> str:
        counts = f"n = {self.n}, reference n = {self.n_reference}"
        if self.interval is None:
            return f"{self.name}: {self.value:.4g} ({counts})"
        low, high = self.interval
        return f"{self.name}: {self.value:.3g} (95 % CI {low:.3g} to {high:.3g}, {counts})"


def frechet(
    features: Tensor, reference: Tensor, *, network: Identity, to: Reference
) -> SetDistance:
    """The Fréchet distance of ``[n, width]`` features to those of a reference set.

    It shrinks as n grows, so only compare distances of equal n. To publish a FID, use 10 000
    pictures.

    Raises:
        ExpungeError: too few pictures for covariances of full rank, widths that differ, or a
            feature that isn't finite.
    """
    one, two = _checked(features, reference)
    (n, width), m = one.shape, len(two)
    if min(n, m) <= width:
        raise ExpungeError(
            f"a Fréchet distance of {width} features needs more than {width} pictures in both sets "
            f"(10 000 to be published), these have {n} and {m}: their covariance is singular; "
            "use the kernel distance (KID)"
        )
    value = frechet_distance(one.mean(0), one.T.cov(), two.mean(0), two.T.cov())
    name = f"Fréchet distance ({network.name}) to {to}"
    return SetDistance(name, value, None, n, m, network, to)


def frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """``|m1 - m2|^2 + Tr(S1 + S2 - 2 (S1 S2)^(1/2))`` of means ``[d]``, covariances ``[d, d]``."""
    values, vectors = torch.linalg.eigh(cov1)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    # S1^(1/2) S2 S1^(1/2) has the eigenvalues of S1 S2 and is symmetric.
    cross = torch.linalg.eigvalsh(root @ cov2 @ root).clamp(min=0).sqrt().sum()
    gap = (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * cross
    return max(0.0, float(gap))


def kid(features: Tensor, reference: Tensor, *, network: Identity, to: Reference) -> SetDistance:
    """The kernel distance (KID) of ``[n, width]`` features to those of a reference set.

    It is the unbiased estimate from all pictures, which equals the usual mean over subsets on
    average and can be negative. Papers often print it times 1000. The interval is normal, with the
    jackknife's standard error; overlapping subsets would underestimate the error.

    Raises:
        ExpungeError: fewer than ten pictures in a set, widths that differ, or a feature that isn't
            finite.
    """
    one, two = _checked(features, reference)
    if min(len(one), len(two)) < FEW:
        raise ExpungeError(
            f"a kernel distance needs at least {FEW} pictures in both sets, these have {len(one)} "
            f"and {len(two)}"
        )
    value, error = squared_mmd(one, two)
    interval = value - _Z * error, value + _Z * error
    name = f"kernel distance ({network.name}) to {to}"
    return SetDistance(name, value, interval, len(one), len(two), network, to)


def squared_mmd(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Unbiased MMD² of ``[n, d]`` and ``[m, d]`` with the kernel ``(a·b / d + 1)^3``.

    Also its standard error, by the jackknife that leaves out one row of either set at a time.
    """
    n, m = len(x), len(y)
    own_x, own_y = _kernel_sums(x, x), _kernel_sums(y, y)
    own_x, own_y = own_x - _kernel(x, x.shape[1]), own_y - _kernel(y, y.shape[1])
    across_x, across_y = _kernel_sums(x, y), _kernel_sums(y, x)
    within_x, within_y = own_x.sum(), own_y.sum()
    across = across_x.sum()
    mean_x, mean_y = within_x / (n * (n - 1)), within_y / (m * (m - 1))
    value = mean_x + mean_y - 2 * across / (n * m)
    without_x = (
        (within_x - 2 * own_x) / ((n - 1) * (n - 2))
        + mean_y
        - 2 * (across - across_x) / ((n - 1) * m)
    )
    without_y = (
        mean_x
        + (within_y - 2 * own_y) / ((m - 1) * (m - 2))
        - 2 * (across - across_y) / (n * (m - 1))
    )
    variance = (n - 1) * without_x.var(correction=0) + (m - 1) * without_y.var(correction=0)
    return value.item(), sqrt(variance.item())


def _kernel(rows: Tensor, width: int) -> Tensor:
    """Of each row with itself, ``[n]``."""
    return (rows.square().sum(-1) / width + 1) ** 3


def _kernel_sums(rows: Tensor, others: Tensor) -> Tensor:
    """Sum over ``others`` of the kernel with each row, ``[n]``."""
    blocks = torch.split(rows, _ROWS)
    return torch.cat([((b @ others.T / rows.shape[1] + 1) ** 3).sum(-1) for b in blocks])


def _checked(features: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Both as float64."""
    if features.ndim != 2 or reference.ndim != 2 or features.shape[1] != reference.shape[1]:
        raise ExpungeError(
            f"features {list(features.shape)} and {list(reference.shape)} of the reference are "
            "not of one network"
        )
    if not features.isfinite().all() or not reference.isfinite().all():
        raise ExpungeError("a feature is not a finite number; the distance is unknown")
    return features.double(), reference.double()
