"""Conditions: every tensor of a prompt goes where its rows go."""

import pytest
import torch
from torch import Tensor

from expunge.models import Condition


def made(prompts: int, *, pooled: bool = True, extra: bool = True, seed: int = 0) -> Condition:
    draws = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(prompts, *shape, generator=draws)

    return Condition(
        random(3, 5), random(4) if pooled else None, {"time_ids": random(6)} if extra else {}
    )


def tensors(condition: Condition) -> list[Tensor]:
    pooled = [] if condition.pooled is None else [condition.pooled]
    return [condition.rows, *pooled, *condition.extra.values()]


def same(one: Condition, other: Condition) -> bool:
    pairs = zip(tensors(one), tensors(other), strict=True)
    return all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("extra", [True, False])
def test_what_is_joined_comes_apart_again(pooled: bool, extra: bool) -> None:
    parts = [made(n, pooled=pooled, extra=extra, seed=n) for n in (2, 1, 3)]
    whole = Condition.cat(parts)
    assert [len(whole), *map(len, tensors(whole))] == [6] * (2 + pooled + extra)
    for part, at in zip(parts, (slice(0, 2), slice(2, 3), slice(3, 6)), strict=True):
        assert same(whole[at], part)
    assert same(Condition.cat(parts[:1]), parts[0])


def test_every_way_to_name_prompts_names_them_in_all_tensors() -> None:
    whole = made(4)
    named = Condition.cat([whole[3:], whole[1:2], whole[3:]])
    assert same(whole[[3, 1, 3]], named)
    assert same(whole[torch.tensor([3, 1, 3])], named)
    mask = torch.tensor([True, False, False, True])
    assert same(whole[mask], whole[[0, 3]])
    assert len(whole[[]]) == 0


def test_one_prompt_stands_for_many_without_a_copy() -> None:
    one = made(1)
    many = one.expand(5)
    assert same(many, Condition.cat([one] * 5))
    assert all(
        tensor.data_ptr() == wide.data_ptr()
        for tensor, wide in zip(tensors(one), tensors(many), strict=True)
    )


def test_a_precision_is_that_of_all_and_nothing_is_copied_in_vain() -> None:
    one = made(2)
    assert {tensor.dtype for tensor in tensors(one.to(dtype=torch.float64))} == {torch.float64}
    same_again = one.to(torch.device("cpu"), torch.float32)
    assert all(a is b for a, b in zip(tensors(one), tensors(same_again), strict=True))


def test_detached_it_has_the_numbers_without_the_gradients() -> None:
    one = made(2).map(lambda tensor: tensor.requires_grad_())
    assert same(one, one.detach())
    assert not any(tensor.requires_grad for tensor in tensors(one.detach()))


@pytest.mark.parametrize("change", [{"pooled": False}, {"extra": False}])
def test_conditions_of_different_families_do_not_join(change: dict[str, bool]) -> None:
    for parts in ([made(1), made(1, **change)], [made(1, **change), made(1)]):
        with pytest.raises(ValueError, match="different families"):
            Condition.cat(parts)
