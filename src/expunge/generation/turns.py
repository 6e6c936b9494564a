"""Threads that draw with a model, in turns with whoever else changes it or draws with it."""

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier, Lock
from typing import ParamSpec, TypeVar

import torch

from expunge.edits.applied import Applied
from expunge.errors import ExpungeError
from expunge.models import Model

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_SMALL = 2 * 16 * 16
"""A picture with at most this many latent pixels is best drawn by one CPU thread."""
_STARTING = Lock()
"""Held while worker threads start, as each changes torch's number of threads for a moment."""


class Turns:
    """The turns of one drawing: each a task of its own, all with the same edits applied.

    The model's lock is lent to a task until it is done, in whatever thread. Between tasks nobody
    holds it, so a drawing that is left unfinished blocks no other.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.state = _state(model)

    def start(
        self,
        pool: Executor,
        task: Callable[Arguments, Result],
        *args: Arguments.args,
        **options: Arguments.kwargs,
    ) -> Future[Result]:
        """Start a task as soon as nobody else is at work with the model.

        Raises:
            ExpungeError: the model has other edits applied than when the drawing began.
        """
        lock = self.model.lock
        with lock.taken_for(self):
            if _state(self.model) != self.state:
                raise ExpungeError(
                    "the edits applied to the model changed while pictures were drawn, so the rest "
                    "would be another model's; draw all pictures of one call before you apply or "
                    "revert an edit, and inside the block of edit.applied(model)"
                )
            lock.lend(self)
            try:
                future = pool.submit(_frozen(self.model, task), *args, **options)
            except BaseException:
                lock.give_back(self)
                raise
            future.add_done_callback(lambda _: lock.give_back(self))
        return future


def _state(model: Model) -> tuple[object, ...]:
    """Equal as long as the model has the same edits, and the same weights changed."""
    with model.lock:
        return (*Applied.to(model).components, frozenset(model.weights.replaced))


def _frozen(model: Model, task: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The task, with the model's networks frozen."""

    def within(*args: Arguments.args, **options: Arguments.kwargs) -> Result:
        with model.frozen():
            return task(*args, **options)

    return within


@contextmanager
def workers_for(model: Model) -> Iterator[tuple[Executor, int]]:
    """Threads to draw in, and their number; more than one only for small pictures on the CPU."""
    _, height, width = model.latent_shape
    small = model.device.type == "cpu" and height * width <= _SMALL
    workers = torch.get_num_threads() if small else 1
    pool = _single_threaded(workers) if small else ThreadPoolExecutor(workers)
    try:
        yield pool, workers
    finally:
        pool.shutdown(cancel_futures=True)


def _single_threaded(workers: int) -> Executor:
    """Running threads that each compute with one thread."""
    with _STARTING:
        threads = torch.get_num_threads()
        pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
        together = Barrier(workers)
        list(pool.map(lambda _: together.wait(), range(workers)))
        # A worker's setting is inherited by every thread that starts later.
        torch.set_num_threads(threads)
    return pool
