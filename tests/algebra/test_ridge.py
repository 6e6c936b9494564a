import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from expunge import ExpungeError
from expunge.algebra.ridge import (
    Moved,
    Rows,
    Statistics,
    factor,
    gram,
    joined,
    kept_rows,
    shared_factors,
    solve,
)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moving(seed: int, count: int, width: int = 8) -> Rows:
    return Rows(draw(seed, count, width), draw(seed + 1, count, width), draw(seed, count).exp())


def matrix(moved: Moved, kept: Tensor, lamb: float = 0.5) -> Tensor:
    left, right = shared_factors(moved, kept, lamb)
    return torch.eye(left.shape[1], dtype=torch.float64) + left.T @ right


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(0, 12))
def test_the_solution_is_where_the_gradient_vanishes(seed: int, moved: int, kept: int) -> None:
    weight, rows, keep, lamb = draw(seed, 5, 8), moving(seed, moved), draw(seed + 3, kept, 8), 0.3
    new = (weight @ matrix(rows, keep, lamb)).requires_grad_()
    missed = (new @ rows.sources.T - weight @ rows.targets.T) ** 2
    objective = (
        (rows.weights * missed).sum()
        + ((new @ keep.T - weight @ keep.T) ** 2).sum()
        + lamb * ((new - weight) ** 2).sum()
    )
    (gradient,) = torch.autograd.grad(objective, new)
    assert gradient.abs().max() < 1e-9 * objective.item() + 1e-9


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 7), st.integers(0, 7))
def test_all_ways_to_solve_agree(seed: int, moved: int, kept: int) -> None:
    """Among the rows, among the components, and from the sums alone: one matrix."""
    rows, keep = moving(seed, moved, 16), draw(seed + 3, kept, 16)
    few = matrix(rows, keep)
    many = matrix(rows, torch.cat([keep, torch.zeros(16, 16, dtype=torch.float64)]))
    sums = matrix(rows.statistics, keep)
    assert torch.allclose(few, many, atol=1e-9)
    assert torch.allclose(few, sums, atol=1e-9)


def test_known_limits() -> None:
    weight, rows, keep = draw(0, 5, 8), moving(1, 1), draw(3, 4, 8)
    still = Rows(rows.sources, rows.sources, rows.weights)
    assert torch.equal(weight @ matrix(still, keep), weight)
    assert torch.allclose(matrix(rows, keep, 1e12), torch.eye(8, dtype=torch.float64), atol=1e-9)
    exact = weight @ matrix(Rows(rows.sources, rows.targets, 1e9 * rows.weights), keep[:0], 1e-6)
    assert torch.allclose(exact @ rows.sources.T, weight @ rows.targets.T, atol=1e-6)
    held = weight @ matrix(rows, 1e6 * keep, 1e-3)
    assert torch.allclose(held @ keep.T, weight @ keep.T, atol=1e-6)


def test_order_of_rows_does_not_matter() -> None:
    rows, keep, order = moving(1, 6), draw(3, 9, 8), torch.tensor([3, 1, 5, 0, 2, 4])
    shuffled = Rows(rows.sources[order], rows.targets[order], rows.weights[order])
    assert torch.allclose(matrix(rows, keep), matrix(shuffled, keep.flip(0)), atol=1e-12)


def test_the_change_has_no_higher_rank_than_there_are_rows() -> None:
    change = matrix(moving(1, 3, 20), draw(3, 40, 20)) - torch.eye(20, dtype=torch.float64)
    assert torch.linalg.matrix_rank(change) == 3


def test_sums_of_rows_add_up_and_subtract() -> None:
    one, two, keep = moving(1, 6), moving(5, 9), draw(3, 4, 8)
    both = one.statistics + two.statistics
    assert torch.allclose(matrix(both, keep), matrix(joined([one, two]), keep), atol=1e-10)
    assert torch.allclose(matrix(both - two.statistics, keep), matrix(one, keep), atol=1e-10)


def test_rows_stay_rows_while_they_are_few() -> None:
    assert isinstance(joined([moving(1, 3), moving(2, 4)]), Rows)
    assert isinstance(joined([moving(1, 3), moving(2, 5)]), Statistics)
    assert isinstance(joined([moving(1, 3), moving(2, 4).statistics]), Statistics)


@pytest.mark.parametrize("count", [0, 5, 30])
def test_rows_to_keep_have_the_weighted_gram_matrix(count: int) -> None:
    rows = draw(1, count, 3, 8)
    kept = kept_rows(iter(rows), 0.3, 8)
    assert torch.allclose(kept.T @ kept, 0.3 * gram(rows), atol=1e-12)
    assert len(kept) <= max(8, 3 * count)
    assert len(kept) <= 8 or count == 0 or 3 * count < 8


def test_a_gram_matrix_of_few_directions_has_few_factor_rows() -> None:
    rows = draw(1, 3, 8)
    assert factor(gram(rows)).shape == (3, 8)


def test_rows_that_repeat_each_other_are_stored_once() -> None:
    once = moving(1, 3)
    twice = joined([once, once])
    full, small = (shared_factors(twice, draw(3, 4, 8), 0.5) for _ in range(2))
    small = full.compressed()
    assert (len(full.left), len(small.left), len(small.right)) == (6, 3, 3)
    assert torch.allclose(full.left.T @ full.right, small.left.T @ small.right, atol=1e-12)


@pytest.mark.parametrize("smallest", [0.0, 1e-16])
def test_a_hopeless_system_names_its_condition_number(smallest: float) -> None:
    matrix = torch.diag(torch.tensor([1.0, 1.0, smallest], dtype=torch.float64))
    with pytest.raises(ExpungeError, match="condition number"):
        solve(matrix, torch.ones(1, 3))


def test_rows_that_share_a_sum_are_still_told_apart() -> None:
    """Statistics add up rows with the same target; targets are first compared by their sums."""
    torch.manual_seed(0)
    targets = torch.tensor([[1.0, 2.0, 0.0], [2.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 3.0]])
    sources, weights = torch.randn(4, 3), torch.rand(4)
    found = Rows(sources, targets, weights).statistics
    shifts = (targets - sources).double()
    wanted = torch.einsum("i,ij,ik->jk", weights.double(), shifts, sources.double())
    assert torch.allclose(found.shift, wanted, atol=1e-12)
