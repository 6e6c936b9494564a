"""A digest is computed once for the same numbers, and never kept when they change."""

import gc
import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from expunge import Model, erase
from expunge.models import hashing
from expunge.models.hashing import digest


def plainly(value: Tensor) -> str:
    """The digest of one tensor called ``w``, as version 0.1 computed it."""
    total = hashlib.sha256(f"w{tuple(value.shape)}".encode())
    total.update(value.detach().to("cpu", torch.float16).contiguous().numpy().tobytes())
    return total.hexdigest()


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of what is rounded and hashed, not only marked."""
    sizes: list[int] = []
    hashed = hashing._hashed

    def counted(tensors: hashing.Named, precisions: object) -> str:
        sizes.append(sum(value.numel() for _, value in tensors))
        return hashed(tensors, precisions)  # type: ignore[arg-type]

    monkeypatch.setattr(hashing, "_hashed", counted)
    monkeypatch.setattr(hashing, "_known", type(hashing._known)())
    return sizes


def written(weight: Tensor) -> None:
    weight[3, 5] += 1


def copied(weight: Tensor) -> None:
    weight.copy_(torch.randn_like(weight))


def through_data(weight: Tensor) -> None:
    weight.data[3, 5] = 7  # as PEFT fuses adapters; no version is counted


def through_numpy(weight: Tensor) -> None:
    weight.numpy()[3, 5] = 7


def exchanged(weight: Tensor) -> None:
    weight.data = weight.flip(0)


def rounded(weight: Tensor) -> None:
    weight.data = weight.data.to(torch.bfloat16)
    weight.data = weight.data.to(torch.float32)


WAYS = (written, copied, through_data, through_numpy, exchanged, rounded)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", [(128, 100), (7, 11)])
def test_every_change_is_noticed(way: Callable[[Tensor], None], shape: tuple[int, int]) -> None:
    weight = torch.randn(shape)
    before = digest([("w", weight)])
    way(weight)
    assert digest([("w", weight)]) == plainly(weight) != before


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("shape", [(), (3,), (0, 4), (90, 91), (8, 4, 3, 3)])
def test_digests_are_those_of_old_files(kind: torch.dtype, shape: tuple[int, ...]) -> None:
    value = (10 * torch.randn(shape)).to(kind)
    assert digest([("w", value)]) == plainly(value)
    apart = torch.stack([value, value], -1)[..., 0]  # not contiguous
    assert digest([("w", apart)]) == plainly(value)


def test_the_same_numbers_are_hashed_once_wherever_they_are(computed: list[int]) -> None:
    weight = torch.randn(200, 300)
    first = digest([("w", weight)])
    for _ in range(3):
        assert digest([("w", weight.clone())]) == first
        gc.collect()
    assert computed == [60_000]
    assert digest([("v", weight)]) != first
    assert digest([("w", weight.view(300, 200))]) != first


def test_applying_and_reverting_hashes_the_base_once(pico: Model, computed: list[int]) -> None:
    edit = erase(pico, "ghost")
    made = len(computed)
    for _ in range(3):
        edit.apply(pico)
        edit.revert(pico)
    assert made == len(computed) == 6  # three roundings of weights, three of the text encoder


def test_threads_agree(computed: list[int]) -> None:
    weights = [torch.full((64, 64), float(at % 4)) for at in range(64)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda weight: digest([("w", weight)]), weights))
    assert found == [plainly(weight) for weight in weights]


def test_only_so_many_are_kept(computed: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "REMEMBERED", 2)
    one, two, three = (torch.full((4,), float(at)) for at in range(3))
    for value in (one, two, one, three, one, two):
        digest([("w", value)])
    assert len(computed) == 4


def test_a_digest_of_much_is_known_to_the_next_process(
    computed: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path))
    monkeypatch.setattr(hashing, "MUCH", 64)
    weight = torch.randn(8, 8)
    first = digest([("w", weight)])
    hashing._known.clear()
    assert digest([("w", weight)]) == first == plainly(weight)
    assert len(computed) == 1
    weight[3, 5] += 1
    hashing._known.clear()
    assert digest([("w", weight)]) == plainly(weight) != first
    assert len(computed) == 2


def test_a_damaged_or_unwritable_cache_costs_only_time(
    computed: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hashing, "MUCH", 64)
    weight = torch.randn(8, 8)
    digest([("w", weight)])
    [file] = (tmp_path / "cache" / "digests").iterdir()
    file.write_bytes(b"\xffcut")
    hashing._known.clear()
    assert digest([("w", weight)]) == plainly(weight)
    assert hashing._read(file) == plainly(weight)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "file"))
    hashing._known.clear()
    assert digest([("w", weight)]) == plainly(weight)
    assert len(computed) == 3
