"""Gates: changes to the outputs of modules that depend on the prompt.

A gate sees only the rows of the condition that the denoiser gets. So it is opened once for a
prompt; all layers and denoising steps share the result.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from expunge.edits.payloads import Payload

Addition = Callable[[Tensor], Tensor]
"""What is added to a module's output, from the module's input."""


@runtime_checkable
class Folded(Protocol):
    """An addition that can be merged into the module's weights while a prompt is drawn."""

    def __call__(self, inputs: Tensor, /) -> Tensor: ...

    def whole(self, module: nn.Module, inputs: Tensor) -> Tensor:
        """The module's output with what is added."""
        ...


Tokens = Sequence[Sequence[int] | None]
"""Token ids of each prompt without its start and end; ``None`` where they aren't known."""


@runtime_checkable
class Gate(Payload, Protocol):
    """A payload that adds to the outputs of the modules whose weights are ``names``."""

    reads_tokens: ClassVar[bool]
    """Whether it needs to know the tokens of a prompt."""

    @classmethod
    def joined(cls, gates: Sequence[Self]) -> Self:
        """One gate that does what several of this form do together.

        Raises:
            ExpungeError: these can't act together.
        """
        ...

    def additions(self, rows: Tensor, tokens: Tokens) -> Mapping[str, Addition]:
        """What is added for each of ``names``; ``rows`` are ``[batch, tokens, width]``.

        Gradients reach the rows. An addition is called with inputs of the same batch as the rows.
        """
        ...


@runtime_checkable
class Opens(Protocol):
    """A gate that says how far it opens."""

    def opening(self, rows: Tensor, tokens: Tokens) -> Tensor:
        """How far it opens for each prompt where it opens widest, ``[batch]``.

        0 is shut. Rows are ``[batch, tokens, width]``; gradients reach them.
        """
        ...


def gates_together(payloads: Sequence[Payload]) -> tuple[Gate, ...]:
    """The gates among the payloads, joined into one for each form."""
    forms: dict[type[Gate], list[Gate]] = {}
    for payload in payloads:
        if isinstance(payload, Gate):
            forms.setdefault(type(payload), []).append(payload)
    return tuple(kind.joined(gates) for kind, gates in forms.items())


def row_digest(row: Tensor) -> bytes:
    """Sixteen bytes that depend on every number of a prompt's rows ``[tokens, width]``."""
    data = row.cpu().contiguous().view(torch.uint8).numpy()
    return hashlib.blake2b(data.tobytes(), digest_size=16).digest()
