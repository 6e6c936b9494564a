"""Gates and guards installed in a model: they wrap forward passes, and are removed again.

The user's modules stay where they are. The denoiser, and each module whose output gets an addition,
temporarily gets its own ``forward``. That calls the one it replaces, whether from the class or put
there by offloading. No weight changes.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from expunge.edits.gates import Addition, Folded, Gate, Tokens, row_digest
from expunge.edits.guards import Guard
from expunge.models import Condition, Model
from expunge.models.calls import Call, Listening
from expunge.models.passes import Pass


class Installed:
    """Gates and guards at work in a model, until ``remove``."""

    def __init__(
        self, model: Model, gates: Sequence[Gate] = (), guards: Sequence[Guard] = ()
    ) -> None:
        reads = any(gate.reads_tokens for gate in gates)
        self.at_work = _AtWork(tuple(gates), tuple(guards), _Reader(model) if reads else None)
        names = dict.fromkeys(name for gate in gates for name in gate.names)
        self.passes: list[Pass] = [
            _GatedPass(model.denoiser.get_submodule(name.rpartition(".")[0]), name, self.at_work)
            for name in names
        ]
        self.passes.append(_DenoiserPass(model.denoiser, model.call, self.at_work))
        self.listening: Listening | None = None
        if self.at_work.read:
            self.listening = model.listen(self.at_work.read.note_all)

    def remove(self) -> None:
        """Leave the modules as they were."""
        self.at_work.gates, self.at_work.guards = (), ()
        if self.listening:
            self.listening.remove()
        for one in self.passes:
            one.remove()


@contextmanager
def gated(model: Model, gates: Sequence[Gate]) -> Iterator[Model]:
    """The model with gates that aren't an edit yet, inside the block."""
    with model.lock:
        installed = Installed(model, gates)
        try:
            yield model
        finally:
            installed.remove()


class _AtWork:
    """What the forward passes share. It holds no module, so that copies of a model work too."""

    def __init__(
        self, gates: tuple[Gate, ...], guards: tuple[Guard, ...], read: "_Reader | None"
    ) -> None:
        self.gates = gates
        self.guards = guards
        self.read = read
        self.now = _Now()

    def open(self, rows: Tensor) -> None:
        """Open the gates for the rows of a condition, if they are new."""
        if self.now.same(rows):
            return
        self.now.rows = rows
        self.now.version = None if _changeable(rows) else rows._version
        self.now.outputs = {}
        tokens = self.read(rows) if self.read else [None] * len(rows)
        self.now.additions = [gate.additions(rows, tokens) for gate in self.gates]


class _Now(threading.local):
    """The condition that a thread's denoiser is given now; copies of a model start without one."""

    def __init__(self) -> None:
        self.rows: Tensor | None = None
        self.version: int | None = None
        """Counts in-place changes of the rows; ``None`` if nothing may be kept."""
        self.additions: list[Mapping[str, Addition]] = []
        self.outputs: dict[str, Tensor] = {}

    def same(self, rows: Tensor) -> bool:
        """Whether these are the rows of the last pass, unchanged."""
        return (
            rows is self.rows
            and self.version is not None
            and not _changeable(rows)
            and rows._version == self.version
        )

    def __reduce__(self) -> tuple[type["_Now"], tuple[()]]:
        return _Now, ()


def _changeable(rows: Tensor) -> bool:
    """Whether gradients are wanted, or in-place changes can't be noticed."""
    return torch.is_grad_enabled() or rows.is_inference()


class _DenoiserPass(Pass):
    """The denoiser inside its guards; gates open for the condition that finally reaches it."""

    def __init__(self, module: nn.Module, call: Call, at_work: _AtWork) -> None:
        super().__init__(module)
        self.call = call
        self.at_work = at_work

    def __call__(self, *args: Any, **options: Any) -> Any:
        guards = self.at_work.guards
        if not guards and not self.at_work.gates:
            return self.found(*args, **options)
        call = self.call(args, options)
        if not guards:
            self.at_work.open(call.condition.rows)
            return self.found(*args, **options)

        def denoiser(latents: Tensor, time: Tensor, condition: Condition) -> Tensor:
            self.at_work.open(condition.rows)
            return call.run(self.found, latents, time, condition)

        answer = denoiser
        for guard in guards:
            answer = partial(guard.predict, answer)
        return call.result(answer(call.latents, call.time, call.condition))


class _GatedPass(Pass):
    """A module with what the gates add to its output.

    Keys and values of a prompt depend on no picture, so they are kept for all denoising steps.
    """

    def __init__(self, module: nn.Module, name: str, at_work: _AtWork) -> None:
        super().__init__(module)
        self.name = name
        self.at_work = at_work

    def __call__(self, inputs: Tensor, *args: Any, **options: Any) -> Tensor:
        if not self.at_work.gates:
            plainly: Tensor = self.found(inputs, *args, **options)
            return plainly
        now = self.at_work.now
        lasting = inputs is now.rows and now.version is not None
        if lasting and self.name in now.outputs:
            return now.outputs[self.name]
        added = [part[self.name] for part in now.additions if self.name in part]
        plain = self.own is None and not lasting  # a forward that somebody else set must run
        folded = next((one for one in added if isinstance(one, Folded) and plain), None)
        output: Tensor
        if folded:
            output = folded.whole(self.module, inputs)
        else:
            output = self.found(inputs, *args, **options)
        for one in added:
            if one is not folded:
                output = output + one(inputs).to(output.dtype)
        if lasting:
            now.outputs[self.name] = output
        return output


class _Reader:
    """Finds the token ids of a prompt's rows, by remembering the text encoder's outputs.

    The ids of rows from elsewhere are unknown.
    """

    LIMIT = 4096
    """Prompts that are remembered."""

    def __init__(self, model: Model) -> None:
        self.end = model.text_encoders[0].end
        self.dtype = model.dtype
        self.seen: dict[bytes, tuple[int, ...]] = {}
        prompts = list(model.remembered)
        for prompt, ids in zip(prompts, model.tokenized(prompts), strict=True):
            self._note(model.remembered[prompt].rows[0], ids)

    def __call__(self, rows: Tensor) -> Tokens:
        return [self.seen.get(row_digest(row)) for row in rows.detach()]

    def note_all(self, rows: Tensor, ids: Tensor) -> None:
        """Remember a batch of the encoder: rows ``[batch, tokens, width]``, and their ids."""
        for row, (_, *tokens) in zip(rows, ids.tolist(), strict=True):
            self._note(row, tokens[: tokens.index(self.end)] if self.end in tokens else tokens)

    def _note(self, row: Tensor, tokens: Sequence[int]) -> None:
        if len(self.seen) >= self.LIMIT:
            del self.seen[next(iter(self.seen))]
        self.seen[row_digest(row.to(self.dtype))] = tuple(tokens)
