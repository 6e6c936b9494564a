"""Guards: changes to the denoiser's predictions, which leave weights and modules alone.

A guard wraps the denoiser: it may call it with another condition, call it several times, and
return something else. The first guard applied is the innermost; gates open for the condition that
the innermost guard passes on. A guard isn't part of the weights, so no export can contain one.
"""

from typing import Protocol, runtime_checkable

from torch import Tensor

from expunge.edits.payloads import Payload
from expunge.models import Condition
from expunge.models.calls import Answer


@runtime_checkable
class Guard(Payload, Protocol):
    """A payload that wraps the denoiser; it has no ``names``."""

    def predict(
        self, denoiser: Answer, latents: Tensor, time: Tensor, condition: Condition
    ) -> Tensor:
        """The prediction in the denoiser's place, shaped like ``latents`` ``[batch, ...]``.

        ``denoiser`` predicts as it would without this guard. With classifier-free guidance, the
        first half of a batch is without the prompt and the second half with it.
        """
        ...
