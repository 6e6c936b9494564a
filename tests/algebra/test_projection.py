"""Projections are symmetric, idempotent and of the rank of their rows."""

import pytest
import torch
from torch import Tensor

from expunge.algebra.projection import gram_projector, projector, span
from expunge.testing import random


def rows(rank: int) -> Tensor:
    """Ten rows of width 24 that span a space of this rank."""
    return random(10, rank, seed=1) @ random(rank, 24, seed=2)


@pytest.mark.parametrize("rank", [0, 1, 4, 10])
def test_a_projector_is_symmetric_idempotent_and_its_trace_is_the_rank(rank: int) -> None:
    found = projector(rows(rank)) if rank else projector(torch.empty(0, 24))
    torch.testing.assert_close(found, found.T)
    torch.testing.assert_close(found @ found, found)
    assert float(found.trace()) == pytest.approx(rank)
    assert len(span(rows(rank)) if rank else span(torch.empty(0, 24))) == rank


def test_it_leaves_its_rows_and_takes_what_is_orthogonal_to_them() -> None:
    own, found = rows(4).double(), projector(rows(4))
    torch.testing.assert_close(own @ found, own, rtol=1e-5, atol=1e-5)
    away = torch.eye(24).double() - found
    assert (own @ away).norm() < 1e-5 * own.norm()


def test_the_gram_matrix_gives_the_same_less_exactly() -> None:
    own = random(5, 24)
    torch.testing.assert_close(gram_projector(own).double(), projector(own), rtol=1e-3, atol=1e-4)


def test_rows_of_nothing_but_zeros_span_nothing() -> None:
    assert not projector(torch.zeros(3, 8)).any()
