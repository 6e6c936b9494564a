import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge import ExpungeError
from expunge.algebra.ridge import gram, shared_factors, solve


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def edited(weight, sources, targets, kept, erase_scale, lamb):
    factors = shared_factors(sources, targets, gram(kept), erase_scale=erase_scale, lamb=lamb)
    return weight + (weight @ factors.left.T) @ factors.right


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(0, 12))
def test_the_solution_is_where_the_gradient_vanishes(seed: int, moved: int, kept: int) -> None:
    weight, sources, targets = draw(seed, 5, 8), draw(seed + 1, moved, 8), draw(seed + 2, moved, 8)
    keep, a, lamb = draw(seed + 3, kept, 8), 1.7, 0.3
    new = edited(weight, sources, targets, keep, a, lamb).requires_grad_()
    objective = (
        a * ((new @ sources.T - weight @ targets.T) ** 2).sum()
        + ((new @ keep.T - weight @ keep.T) ** 2).sum()
        + lamb * ((new - weight) ** 2).sum()
    )
    (gradient,) = torch.autograd.grad(objective, new)
    assert gradient.abs().max() < 1e-9 * objective.item() + 1e-9


def test_known_limits() -> None:
    weight, sources, targets, keep = draw(0, 5, 8), draw(1, 1, 8), draw(2, 1, 8), draw(3, 4, 8)
    same = edited(weight, sources, sources, keep, 1.0, 0.5)
    assert torch.equal(same, weight)
    stiff = edited(weight, sources, targets, keep, 1.0, 1e12)
    assert torch.allclose(stiff, weight, atol=1e-9)
    exact = edited(weight, sources, targets, keep[:0], 1e9, 1e-6)
    assert torch.allclose(exact @ sources.T, weight @ targets.T, atol=1e-6)
    held = edited(weight, sources, targets, 1e6 * keep, 1.0, 1e-3)
    assert torch.allclose(held @ keep.T, weight @ keep.T, atol=1e-6)


def test_order_of_rows_does_not_matter() -> None:
    weight, sources, targets, keep = draw(0, 5, 8), draw(1, 6, 8), draw(2, 6, 8), draw(3, 9, 8)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    one = edited(weight, sources, targets, keep, 1.0, 0.5)
    two = edited(weight, sources[order], targets[order], keep.flip(0), 1.0, 0.5)
    assert torch.allclose(one, two, atol=1e-12)


def test_rows_that_repeat_each_other_are_stored_once() -> None:
    sources, targets = draw(1, 3, 8), draw(2, 3, 8)
    kept = gram(draw(3, 4, 8))
    once = shared_factors(sources, targets, kept, erase_scale=2.0, lamb=0.5)
    twice = shared_factors(
        torch.cat([sources, sources]),
        torch.cat([targets, targets]),
        kept,
        erase_scale=1.0,
        lamb=0.5,
    )
    assert len(twice.left) == len(twice.right) == 3
    assert torch.allclose(once.left.T @ once.right, twice.left.T @ twice.right, atol=1e-12)


def test_a_hopeless_system_names_its_condition_number() -> None:
    with pytest.raises(ExpungeError, match="condition number"):
        solve(torch.zeros(3, 3, dtype=torch.float64), torch.ones(1, 3))
