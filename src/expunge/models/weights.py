"""A denoiser's parameters, some of which are replaced for a while, and the lock on them."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType

import torch
from torch import Tensor, nn

from expunge.errors import ExpungeError
from expunge.models.aside import Aside
from expunge.models.on_disk import Skeleton


class Lock:
    """A lock that the thread that holds it can take again; a copy is a lock of its own.

    Its holder can *lend* it to work in other threads, which may go on when it is released. Whoever
    takes it next waits until that work is done.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._returned = threading.Condition()
        self._lent: list[object] = []
        """Whose work it is lent to, once for each piece of work."""

    def __enter__(self) -> None:
        self._take(None)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.release()

    @contextmanager
    def taken_for(self, user: object) -> Iterator[None]:
        """Hold it, without waiting for work that it is lent to for the same user."""
        self._take(user)
        try:
            yield
        finally:
            self._lock.release()

    def lend(self, user: object) -> None:
        """Lend it to a piece of work; only its holder may."""
        with self._returned:
            self._lent.append(user)

    def give_back(self, user: object) -> None:
        """A piece of work is done; called from any thread."""
        with self._returned:
            self._lent.remove(user)
            self._returned.notify_all()

    def _take(self, user: object | None) -> None:
        self._lock.acquire()
        try:
            with self._returned:
                self._returned.wait_for(lambda: all(one is user for one in self._lent))
        except BaseException:
            self._lock.release()
            raise

    def __reduce__(self) -> tuple[type["Lock"], tuple[()]]:
        return Lock, ()


class Weights:
    """Parameters by name, each with its base value to go back to."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.replaced = Aside(network)
        """Base values of the parameters that have another value now."""

    def base(self, name: str) -> Tensor:
        """A parameter as it is without any change, where it is and in its precision now.

        Raises:
            ExpungeError: the values are offloaded, so they can't be read, or the file that they are
            in was changed.
        """
        parameter = self.network.get_parameter(name).detach()
        if name in self.replaced:
            return self.replaced[name].to(parameter)
        if isinstance(self.network, Skeleton):
            return self.network.numbers(name)
        if parameter.is_meta:
            raise ExpungeError(
                f"{name}: the weights are offloaded; load the pipeline without sequential CPU "
                "offload (model offload, which moves whole networks, is fine)"
            )
        return parameter

    @property
    def stamp(self) -> str:
        """What tells the base values from others without reading them; mostly empty."""
        return self.network.numbers.stamp if isinstance(self.network, Skeleton) else ""

    @torch.no_grad()
    def write(self, values: Mapping[str, Tensor | None]) -> None:
        """Replace parameters in place; ``None`` puts the base value back, bit for bit.

        Raises:
            ExpungeError: they are on disk, where nothing is written.
        """
        if isinstance(self.network, Skeleton):
            raise ExpungeError("the model's weights are on disk; load it whole to change them")
        for name, value in values.items():
            parameter = self.network.get_parameter(name)
            if value is None:
                parameter.copy_(self.replaced.pop(name, parameter))
            else:
                if name not in self.replaced:
                    self.replaced[name] = self.base(name)
                parameter.copy_(value)

    def check(self) -> None:
        """See that parameters can be changed, and that a change shows.

        Raises:
            ExpungeError: adapters are loaded, projections are fused, or the network is compiled.
        """
        for name, _ in self.network.named_parameters():
            if ".base_layer." in name or ".lora_" in name:
                raise ExpungeError(
                    "the pipeline has LoRA adapters loaded, and an edit is of the plain weights; "
                    "unload them first (pipe.unload_lora_weights()), and load them again after"
                )
            if name.startswith("_orig_mod."):
                raise ExpungeError("the denoiser is compiled; edit the pipeline before compiling")
        if any(_fused(module) for module in self.network.modules()):
            raise ExpungeError(
                "the pipeline's projections are fused, so edits of them wouldn't show; call "
                "pipe.unfuse_qkv_projections() first"
            )


def _fused(module: nn.Module) -> bool:
    """Whether an attention computes with fused projections: its own flag outlives their use."""
    return type(getattr(module, "processor", None)).__name__.startswith("Fused")
