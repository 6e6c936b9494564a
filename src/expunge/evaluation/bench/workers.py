"""Work on the bundled model, one piece after the other or several side by side."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from threading import Thread
from typing import TypeVar

from expunge.models import Model, load

K = TypeVar("K")
R = TypeVar("R")


def each(
    work: Callable[[Model, K], R], pieces: Sequence[K], model: Model, jobs: int
) -> Iterator[tuple[K, R]]:
    """Yield what ``work`` gives for each piece, as it is finished.

    Args:
        work: a function of the bundled model and a piece; other processes must be able to import
            it.
        pieces: what there is to do.
        model: the bundled model, for work in this process.
        jobs: pieces to work on at once, each in a process with its share of the cores.
    """
    if jobs == 1:
        for piece in pieces:
            yield piece, work(model, piece)
        return
    threads = max(1, (os.cpu_count() or 1) // jobs)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, _start_worker, (threads,)) as pool:
        futures = {pool.submit(_in_worker, work, piece): piece for piece in pieces}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_worker_model: list[Model] = []


def _start_worker(threads: int) -> None:
    import torch

    Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    _worker_model.append(load("emoji"))


def _end_with_parent() -> None:
    """End this worker with its parent; else its piece would go on, perhaps for half an hour."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _in_worker(work: Callable[[Model, K], R], piece: K) -> R:
    return work(_worker_model[0], piece)
