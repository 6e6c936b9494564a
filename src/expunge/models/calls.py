"""Calls that cross the seam: what a denoiser answers, and what listeners are told of texts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from expunge.models.condition import Condition

Answer = Callable[[Tensor, Tensor, Condition], Tensor]
"""What a denoiser answers: of latents ``[batch, ...]``, time ``[batch]`` and condition, shaped like
the latents."""

Hear = Callable[[Tensor, Tensor], None]
"""Called with rows ``[batch, tokens, width]`` and the token ids ``[batch, tokens]`` that they are
of, where -1 is a token that has no id."""


class Listening:
    """Somebody who is told of every text that is encoded, until ``remove``."""

    def __init__(self, all_hearing: list[Hear], hear: Hear, network: nn.Module) -> None:
        self.all_hearing = all_hearing
        self.hear = hear
        self.handle = network.register_forward_hook(self._listen, with_kwargs=True)
        all_hearing.append(hear)

    def _listen(
        self, network: nn.Module, args: tuple[Any, ...], options: dict[str, Any], output: Any
    ) -> None:
        self.hear(output[0].detach(), args[0] if args else options["input_ids"])

    def remove(self) -> None:
        self.all_hearing.remove(self.hear)
        self.handle.remove()


class DenoiserCall(Protocol):
    """A call of the denoiser, by a pipeline or by ``Model.predict``, in the seam's own terms."""

    @property
    def latents(self) -> Tensor: ...
    @property
    def time(self) -> Tensor: ...
    @property
    def condition(self) -> Condition: ...

    def run(
        self, forward: Callable[..., Any], latents: Tensor, time: Tensor, condition: Condition
    ) -> Tensor:
        """What ``forward`` answers to this call with other latents, time and condition."""
        ...

    def result(self, answer: Tensor) -> Any:
        """An answer in the form that the caller expects."""
        ...


Call = Callable[[Sequence[Any], Mapping[str, Any]], DenoiserCall]
"""A call of the denoiser from its arguments."""
