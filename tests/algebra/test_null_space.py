"""Null spaces: orthogonal to what they should be, of the right size, all-but-one and by hand."""

import pytest
import torch
from torch import Tensor

from expunge.algebra.null_space import fitting, leading, null_space, null_spaces, rref


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


def orthonormal(space: Tensor) -> bool:
    return torch.allclose(space @ space.T, torch.eye(len(space)).double(), atol=1e-12)


def same(one: Tensor, two: Tensor) -> bool:
    """Do orthonormal rows span the same space?"""
    return len(one) == len(two) and torch.allclose(one.T @ one, two.T @ two, atol=1e-9)


@pytest.mark.parametrize(
    ("rows", "rank"),
    [
        (random(5, 12), 5),
        (torch.cat([random(5, 12), random(5, 12)]), 5),  # each row twice
        (random(20, 3) @ random(3, 12, seed=1), 3),  # more rows than directions
        (random(12, 12), 12),
        (torch.zeros(2, 12), 0),
        (torch.zeros(0, 12), 0),
    ],
)
def test_the_null_space_is_all_that_is_orthogonal(rows: Tensor, rank: int) -> None:
    space = null_space(rows)
    assert space.shape == (12 - rank, 12)
    assert space.dtype == torch.float64
    assert orthonormal(space)
    assert (space @ rows.double().T).norm() < 1e-12


def test_it_stays_within_a_space() -> None:
    within, rows = null_space(random(4, 12)), random(3, 12, seed=1)
    assert same(null_space(rows, within), null_space(torch.cat([random(4, 12), rows])))


def test_short_directions_count_as_none() -> None:
    rows = torch.cat([random(3, 12), 1e-3 * random(2, 12, seed=1)])
    assert len(null_space(rows)) == 7
    assert len(null_space(rows, tolerance=0.01)) == 9
    assert (null_space(rows, tolerance=0.01) @ rows[:3].T).abs().max() < 0.01


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_every_block_gets_the_null_space_of_the_others(count: int) -> None:
    shared = random(2, 40)
    blocks = [torch.cat([shared[:1], random(4, 40, seed=1 + k)]) for k in range(count)]
    spaces = null_spaces(blocks, null_space(shared))
    for turn, space in enumerate(spaces):
        others = [block for index, block in enumerate(blocks) if index != turn]
        assert same(space, null_space(torch.cat([shared, *others])))
        assert (space @ blocks[turn].T).norm() > 1.0  # it isn't orthogonal to its own


def test_how_many_blocks_fit() -> None:
    blocks = [random(4, 20, seed=k) for k in range(6)]
    whole = torch.eye(20).double()
    assert fitting(blocks, whole, lambda space: len(space) > 0) == 4  # the fifth leaves nothing
    assert fitting(blocks, whole, lambda space: len(space) >= 5) == 3
    assert fitting(blocks[:2], whole, lambda space: len(space) > 0) == 2
    assert fitting(blocks, whole[:0], lambda space: len(space) > 0) == 0


def test_leading_directions_hold_all_of_the_rows_inside_the_space() -> None:
    rows, within = random(3, 20), null_space(random(8, 20, seed=1))
    found = leading(rows, within)
    assert found.shape == (3, 20)
    assert orthonormal(found)
    projected = rows @ within.T @ within
    assert torch.allclose(projected @ found.T @ found, projected, atol=1e-12)
    first = leading(rows, within, most=1)
    best = torch.linalg.svdvals(projected)[0]
    assert (projected @ first.T).norm() == pytest.approx(float(best))
    assert torch.allclose(first.abs(), found[:1].abs())
    assert not len(leading(within[:0], within))
    assert not len(leading(rows, within[:0]))
    orthogonal = null_space(torch.cat([within, rows]))[:1]
    assert not len(leading(orthogonal, within))


def by_hand(rows: Tensor) -> Tensor:
    """Gauss-Jordan elimination, number by number, and a unit vector for each free column."""
    table, pivots = [[float(x) for x in row] for row in rows], []
    for column in range(rows.shape[1]):
        below = range(len(pivots), len(table))
        best = max(below, key=lambda at: abs(table[at][column]), default=None)
        if best is None or abs(table[best][column]) < 1e-9:
            continue
        top = len(pivots)
        table[top], table[best] = table[best], table[top]
        table[top] = [x / table[top][column] for x in table[top]]
        for at in range(len(table)):
            if at != top:
                factor = table[at][column]
                table[at] = [x - factor * y for x, y in zip(table[at], table[top], strict=True)]
        pivots.append(column)
    vectors = []
    for column in range(rows.shape[1]):
        if column not in pivots:
            vector = torch.zeros(rows.shape[1]).double()
            vector[column] = 1.0
            for at, pivot in enumerate(pivots):
                vector[pivot] = -table[at][column]
            vectors.append(vector / vector.norm())
    return torch.stack(vectors)


@pytest.mark.parametrize("late", [False, True])
def test_rref_is_elimination_by_hand(late: bool) -> None:
    rows = torch.cat([random(6, 14), random(2, 6, seed=1) @ random(6, 14)])
    if late:  # so that the pivots aren't the first columns
        rows[:, 0] = 0.0
        rows[:, 3] = rows[:, 1] - 2 * rows[:, 2]
    ours = rref(rows)
    assert torch.allclose(ours, by_hand(rows), atol=1e-9)
    assert ours.norm(dim=1).tolist() == pytest.approx([1.0] * 8)
    assert (rows @ ours.T).abs().max() < 1e-10
    assert same(torch.linalg.qr(ours.T).Q.T, null_space(rows))


def test_rref_without_rank_is_everything() -> None:
    assert torch.equal(rref(torch.zeros(2, 4)), torch.eye(4).double())
