"""Gates: changes that act on the outputs of modules, as far as the prompt asks for them.

A gate sees the conditions that the UNet is given (the prompt's embedding) and nothing else. So it
is evaluated once for a prompt; all layers and denoising steps share what it found, and the keys
and values of a prompt, which depend on no picture either, are kept with it.

The modules stay the user's own and where they are: each gets a ``forward`` of its own while gates
are installed, and loses it again. No weight changes.
"""

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import Self

from expunge.edits.payloads import Payload
from expunge.models import Model

Addition = Callable[[Tensor], Tensor]
"""What is added to a module's output, from the module's input."""


@runtime_checkable
class Folded(Protocol):
    """An addition that can be part of the module's weights while a prompt is drawn."""

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
        """What several gates of this form are together.

        Raises:
            ExpungeError: these can't act together.
        """
        ...

    def additions(self, conditions: Tensor, tokens: Tokens) -> Mapping[str, Addition]:
        """What is added for each of ``names``; ``conditions`` are ``[batch, rows, width]``.

        Has gradients with respect to the conditions. An addition gets inputs of the batch that
        the conditions are of.
        """
        ...


def gates_together(payloads: Sequence[Payload]) -> tuple[Gate, ...]:
    """The gates among the payloads, with those of one form made one."""
    forms: dict[type[Gate], list[Gate]] = {}
    for payload in payloads:
        if isinstance(payload, Gate):
            forms.setdefault(type(payload), []).append(payload)
    return tuple(kind.joined(gates) for kind, gates in forms.items())


class Installed:
    """Gates at work in a model, until ``remove``."""

    def __init__(self, model: Model, gates: Sequence[Gate]) -> None:
        self.gates = tuple(gates)
        self.now = _Now()
        self.forwards: dict[str, _Gated] = {}
        for name in dict.fromkeys(name for gate in gates for name in gate.names):
            module = model.unet.get_submodule(name.rpartition(".")[0])
            self.forwards[name] = _Gated(module, name, self)
            module.forward = self.forwards[name]
        self.handles: list[RemovableHandle] = [
            model.unet.register_forward_pre_hook(self.observe, with_kwargs=True)
        ]
        self.read: _Reader | None = None
        if any(gate.reads_tokens for gate in gates):
            self.read = _Reader(model)
            listening = model.pipe.text_encoder.register_forward_hook
            self.handles.append(listening(self.read.listen, with_kwargs=True))

    def remove(self) -> None:
        """Leave the modules as they were."""
        self.gates = ()
        for handle in self.handles:
            handle.remove()
        for gated in self.forwards.values():
            if vars(gated.module).get("forward") is gated:
                del gated.module.forward

    def observe(self, unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a pass of the UNet: open the gates for its conditions, if they are new."""
        conditions: Tensor = kwargs["encoder_hidden_states"] if len(args) < 3 else args[2]
        if self.now.same(conditions):
            return
        self.now.conditions = conditions
        self.now.version = None if _changeable(conditions) else conditions._version
        self.now.outputs = {}
        tokens = self.read(conditions) if self.read else [None] * len(conditions)
        self.now.additions = [gate.additions(conditions, tokens) for gate in self.gates]


class _Now(threading.local):
    """What a thread's UNet is drawing now; copies of a model start without."""

    def __init__(self) -> None:
        self.conditions: Tensor | None = None
        self.version: int | None = None
        """Counts in-place changes of the conditions; ``None`` if nothing may be kept."""
        self.additions: list[Mapping[str, Addition]] = []
        self.outputs: dict[str, Tensor] = {}

    def same(self, conditions: Tensor) -> bool:
        """Whether these are the conditions of the last pass, unchanged."""
        return (
            conditions is self.conditions
            and self.version is not None
            and not _changeable(conditions)
            and conditions._version == self.version
        )

    def __reduce__(self) -> tuple[type["_Now"], tuple[()]]:
        return _Now, ()


def _changeable(conditions: Tensor) -> bool:
    """Whether gradients are wanted, or changes in place can't be seen."""
    return torch.is_grad_enabled() or conditions.is_inference()


class _Gated:
    """A module's forward pass with what the gates add; copies of the model keep their own."""

    def __init__(self, module: nn.Module, name: str, installed: Installed) -> None:
        self.module = module
        self.name = name
        self.installed = installed

    def __call__(self, inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        now = self.installed.now
        lasting = inputs is now.conditions and now.version is not None
        if lasting and self.name in now.outputs:
            return now.outputs[self.name]
        added = [part[self.name] for part in now.additions if self.name in part]
        if not self.installed.gates:
            added = []
        folded = next((one for one in added if isinstance(one, Folded) and not lasting), None)
        output: Tensor
        if folded:
            output = folded.whole(self.module, inputs)
        else:
            output = type(self.module).forward(self.module, inputs, *args, **kwargs)
        for one in added:
            if one is not folded:
                output = output + one(inputs).to(output.dtype)
        if lasting:
            now.outputs[self.name] = output
        return output


class _Reader:
    """Finds the token ids of an embedding, by what the text encoder has been seen to give.

    An embedding that comes from elsewhere has unknown ones.
    """

    LIMIT = 4096
    """Prompts that are remembered."""

    def __init__(self, model: Model) -> None:
        self.end: int = model.pipe.tokenizer.eos_token_id
        self.dtype = model.dtype
        self.seen: dict[bytes, tuple[int, ...]] = {}
        prompts = list(model.embeddings)
        for prompt, ids in zip(prompts, model.tokenized(prompts), strict=True):
            self._note(model.embeddings[prompt], ids)

    def __call__(self, conditions: Tensor) -> Tokens:
        return [self.seen.get(row_digest(row)) for row in conditions.detach()]

    def listen(
        self, encoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        """After a pass of the text encoder."""
        ids: Tensor = args[0] if args else kwargs["input_ids"]
        for row, (_, *tokens) in zip(output[0].detach(), ids.tolist(), strict=True):
            self._note(row, tokens[: tokens.index(self.end)] if self.end in tokens else tokens)

    def _note(self, row: Tensor, tokens: Sequence[int]) -> None:
        if len(self.seen) >= self.LIMIT:
            del self.seen[next(iter(self.seen))]
        self.seen[row_digest(row.to(self.dtype))] = tuple(tokens)


def row_digest(row: Tensor) -> bytes:
    data = row.cpu().contiguous().view(torch.uint8).numpy()
    return hashlib.blake2b(data.tobytes(), digest_size=16).digest()
