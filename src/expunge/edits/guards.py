"""Guards: changes that act on what the denoiser answers, and leave weights and modules alone.

A guard stands between whoever draws and the denoiser: it may ask with another condition, ask more
than once, and answer something else. The first guard applied is the nearest to the denoiser; gates
are opened for what guards ask in the end. Whoever holds the pipeline can take a guard off, so
no export can contain one.
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
        """What is answered in the denoiser's place, shaped like ``latents`` ``[batch, ...]``.

        ``denoiser`` answers as it would without this guard. With classifier-free guidance a
        batch's first half is without the prompt, and its second half with it.
        """
        ...
