"""The projection on the simplex, the gradient through a drawn token, and the nearest token."""

import pytest
import torch
from torch import Tensor

from expunge.attacks.p4d_released import nearest
from expunge.attacks.simplex import bisected, drawn, straight_through


def projected(rows: Tensor) -> Tensor:
    """The closest points of the simplex (Held, Wolfe and Crowder, 1974)."""
    ordered = rows.double().sort(dim=-1, descending=True).values
    surplus = (ordered.cumsum(-1) - 1) / torch.arange(1, rows.shape[-1] + 1)
    active = (ordered > surplus).sum(-1, keepdim=True)
    return (rows - surplus.gather(-1, active - 1)).clamp(min=0).to(rows.dtype)


def rows(seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(5, 200, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
def test_projected_rows_are_probabilities(scale: float) -> None:
    found = projected(rows(0, scale))
    assert found.min() >= 0
    torch.testing.assert_close(found.double().sum(-1), torch.ones(5).double(), atol=1e-6, rtol=0)


def test_projecting_twice_changes_nothing() -> None:
    once = projected(rows(1))
    torch.testing.assert_close(projected(once), once, atol=1e-7, rtol=0)


def test_projecting_keeps_the_order() -> None:
    given = rows(2, 0.05)
    found = projected(given)
    ordered = found.gather(-1, given.argsort(-1))
    assert (ordered.diff(dim=-1) >= 0).all()


def test_a_point_of_the_simplex_stays() -> None:
    given = rows(3).softmax(-1)
    torch.testing.assert_close(projected(given), given, atol=1e-7, rtol=0)


def test_no_other_point_of_the_simplex_is_closer() -> None:
    given = rows(4)
    distance = (projected(given) - given).norm(dim=-1)
    for seed in range(20):
        other = rows(100 + seed, 3.0).softmax(-1)
        assert ((other - given).norm(dim=-1) >= distance).all()


def test_the_released_projection_is_about_the_same() -> None:
    given = rows(5)
    torch.testing.assert_close(bisected(given), projected(given), atol=2e-5, rtol=0)


def test_the_released_projection_leaves_rows_with_the_right_sum() -> None:
    given = rows(6).softmax(-1)
    assert torch.equal(bisected(given), given)


def test_the_gradient_is_that_of_a_one_hot_row() -> None:
    draws = torch.Generator().manual_seed(0)
    table = torch.randn(40, 8, generator=draws)
    weights = torch.randn(8, generator=draws) / 50
    one_hot = torch.nn.functional.one_hot(torch.tensor([3, 17]), 40).float().requires_grad_()
    loss = ((one_hot @ table) @ weights).square().sum()
    [dense] = torch.autograd.grad(loss, [one_hot])
    embeddings = table[[3, 17]].clone().requires_grad_()
    [own] = torch.autograd.grad((embeddings @ weights).square().sum(), [embeddings])
    torch.testing.assert_close(straight_through(own, table), dense.clamp(-1, 1))


def test_a_sure_token_is_drawn() -> None:
    sure = torch.zeros(3, 10)
    sure[torch.arange(3), [1, 5, 9]] = 1
    assert drawn(sure, torch.Generator().manual_seed(0)).tolist() == [1, 5, 9]


def test_the_nearest_token_of_a_token_is_itself_whatever_its_length() -> None:
    table = torch.randn(40, 8, generator=torch.Generator().manual_seed(1))
    directions, ids = torch.nn.functional.normalize(table, dim=-1), torch.arange(40)
    assert torch.equal(nearest(table, directions), ids)
    assert torch.equal(nearest(0.01 * table, directions), ids)
    given = rows(7)[:, :8]
    once = nearest(given, directions)
    assert torch.equal(nearest(table[once], directions), once)
