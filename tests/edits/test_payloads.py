"""A sum of changes is the changes added up, in whatever form they are asked for."""

import pytest
import torch
from torch import Tensor

from expunge import ExpungeError
from expunge.edits.payloads import CHANGES, Change, Dense, LowRank, SharedMatrix, Sum, stored

NAMES = ("one", "two")


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.fixture
def parts() -> tuple[Change, ...]:
    torch.manual_seed(0)
    return (
        SharedMatrix(NAMES, drawn(2, 6), drawn(2, 6)),
        LowRank({n: drawn(4, 1) for n in NAMES}, {n: drawn(1, 6) for n in NAMES}),
        Dense({n: drawn(4, 6) for n in NAMES}),
    )


def test_a_sum_changes_as_its_parts_do_together(parts: tuple[Change, ...]) -> None:
    weight, total = drawn(4, 6), Sum(parts)
    wanted = sum(part.change("two", weight) for part in parts)
    up, down = total.low_rank("two", weight)
    assert total.names == NAMES
    assert torch.allclose(total.change("two", weight), wanted, atol=1e-12)
    assert torch.allclose(up @ down, wanted, atol=1e-12)


def test_a_sum_comes_back_from_its_tensors(parts: tuple[Change, ...]) -> None:
    weight, total = drawn(4, 6), Sum((*parts, Sum(parts)))
    back = stored(CHANGES, "sum", NAMES, total.tensors())
    assert isinstance(back, Sum)
    assert [part.form for part in back.parts] == ["shared_matrix", "low_rank", "dense", "sum"]
    for name in NAMES:
        assert torch.equal(back.change(name, weight), total.change(name, weight))


def test_more_than_nine_parts_keep_their_order(parts: tuple[Change, ...]) -> None:
    changes = [Dense({n: drawn(4, 6) for n in NAMES}) for _ in range(11)]
    back = stored(CHANGES, "sum", NAMES, Sum(tuple(changes)).tensors())
    for part, change in zip(back.parts, changes, strict=True):
        assert torch.equal(part.changes["one"], change.changes["one"])


def test_parts_change_the_same_parameters(parts: tuple[Change, ...]) -> None:
    with pytest.raises(ExpungeError, match="must change the same parameters"):
        Sum((parts[0], Dense({"one": drawn(4, 6)})))
    with pytest.raises(ExpungeError, match="must change the same parameters"):
        Sum(())


@pytest.mark.parametrize(
    ("key", "message"),
    [("left", "is of no part of the sum"), ("0:shared:left", "unknown payload 'shared'")],
)
def test_a_damaged_sum_is_refused(key: str, message: str) -> None:
    with pytest.raises(ExpungeError, match=message):
        stored(CHANGES, "sum", NAMES, {key: drawn(2, 6)})


def test_a_sum_without_a_tensor_is_refused(parts: tuple[Change, ...]) -> None:
    tensors = Sum(parts).tensors()
    del tensors["0:shared_matrix:left"]
    with pytest.raises(ExpungeError, match="lacks the tensor 'left'"):
        stored(CHANGES, "sum", NAMES, tensors)


def test_factors_that_are_shared_are_stored_once() -> None:
    up = {name: torch.randn(4, 2) for name in ("one", "two")}
    shared = torch.randn(2, 6)
    payload = LowRank(up, dict.fromkeys(up, shared))
    tensors = payload.tensors()
    assert set(tensors) == {"up:one", "up:two", "down"}
    again = LowRank.of(("one", "two"), tensors)
    assert set(again.tensors()) == set(tensors)
    for name in up:
        assert torch.equal(again.change(name, up[name]), payload.change(name, up[name]))
    alike = LowRank(up, {name: shared.clone() for name in up})
    assert set(alike.tensors()) == {"up:one", "up:two", "down:one", "down:two"}
