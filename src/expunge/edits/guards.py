"""Guards: changes to the denoiser's predictions, which leave weights and modules alone.

A guard wraps the denoiser: it may call it with another condition, call it several times, and
return something else. The first guard applied is the innermost; gates open for the condition that
the innermost guard passes on. A guard isn't part of the weights, so no export can contain one.

What a guard remembers from one step to the next is in the step's drawing, never in the guard: one
guard stands around many drawings at a time.
"""

from collections.abc import Callable
from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor

from expunge.edits.drawings import Step
from expunge.edits.payloads import Payload

Denoiser = Callable[[Step], Tensor]
"""What answers a step, shaped like its latents."""


@runtime_checkable
class Guard(Payload, Protocol):
    """A payload that wraps the denoiser; it has no ``names``."""

    reads_tokens: ClassVar[bool]
    """Whether it needs the step's ``reader``."""
    reroutes: ClassVar[bool]
    """Whether it changes skip features."""

    def predict(self, denoiser: Denoiser, step: Step) -> Tensor:
        """The prediction in the denoiser's place, shaped like the step's latents ``[batch, ...]``.

        ``denoiser`` predicts as it would without this guard. A picture's prediction may depend on
        nothing in the batch but its own rows.
        """
        ...

    def acts(self) -> bool:
        """Whether it changes any prediction at all; one that doesn't is no edit."""
        ...
