"""Peak memory is that of the block, whatever is freed again before it ends."""

import mmap

import pytest
import torch

from expunge.memory import peak_memory

SIZE = 2**28


def touch() -> None:
    """Use ``SIZE`` bytes that are new to the process, unlike what malloc may reuse."""
    with mmap.mmap(-1, SIZE) as memory:
        held = torch.frombuffer(memory, dtype=torch.uint8)
        for _ in range(5):
            held.add_(1)
        del held


def test_memory_in_use_for_a_moment_is_seen() -> None:
    with peak_memory(torch.device("cpu")) as used:
        touch()
    assert 0.9 * SIZE < used.added < 1.5 * SIZE
    assert used.peak == used.before + used.added


def test_what_is_in_use_after_the_block_does_not_count() -> None:
    with peak_memory() as used:
        pass
    before = used.peak
    touch()
    assert used.peak == before


def test_an_error_ends_the_watch() -> None:
    with pytest.raises(KeyError), peak_memory() as used:
        raise KeyError
    assert used.peak >= used.before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_memory_is_what_torch_allocated_there() -> None:
    device = torch.device("cuda")
    with peak_memory(device) as used:
        torch.empty(SIZE, dtype=torch.uint8, device=device)
    assert SIZE <= used.added < 1.1 * SIZE
