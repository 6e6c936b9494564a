"""Networks in evaluation mode, none of whose parameters wants gradients, for a while."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from torch import nn


class Freezer:
    """Freezes networks as long as anybody is inside, and puts their flags back after the last.

    So threads that draw side by side don't undo each other's flags. A copy is a freezer of its own.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._training: list[nn.Module] = []
        self._wanting: list[nn.Parameter] = []

    @contextmanager
    def __call__(self, networks: Callable[[], Iterable[nn.Module]]) -> Iterator[None]:
        with self._lock:
            if not self._inside:
                self._freeze(networks())
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    self._put_back()

    def _freeze(self, networks: Iterable[nn.Module]) -> None:
        for network in networks:
            self._training += [module for module in network.modules() if module.training]
            self._wanting += [one for one in network.parameters() if one.requires_grad]
        for module in self._training:
            module.training = False
        for parameter in self._wanting:
            parameter.requires_grad_(False)

    def _put_back(self) -> None:
        for module in self._training:
            module.training = True
        for parameter in self._wanting:
            parameter.requires_grad_(True)
        self._training, self._wanting = [], []

    def __reduce__(self) -> tuple[type["Freezer"], tuple[()]]:
        return Freezer, ()
