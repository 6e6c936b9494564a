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

from expunge.edits.drawings import Drawings, Step
from expunge.edits.gates import Addition, Folded, Gate
from expunge.edits.guards import Denoiser, Guard
from expunge.edits.reading import Reader
from expunge.models import Model
from expunge.models.calls import Call
from expunge.models.passes import Pass
from expunge.models.skips import Reroute

RECENT = 3
"""Conditions whose gates stay open: guards may ask for several in every step."""


class Installed:
    """Gates and guards at work in a model, until ``remove``."""

    def __init__(
        self, model: Model, gates: Sequence[Gate] = (), guards: Sequence[Guard] = ()
    ) -> None:
        reads = any([*(one.reads_tokens for one in gates), *(one.reads_tokens for one in guards)])
        reader = Reader(model) if reads else None
        self.at_work = _AtWork(tuple(gates), tuple(guards), reader, Drawings.of(model))
        names = dict.fromkeys(name for gate in gates for name in gate.names)
        self.passes: list[Pass] = [
            _GatedPass(model.denoiser.get_submodule(name.rpartition(".")[0]), name, self.at_work)
            for name in names
        ]
        if any(guard.reroutes for guard in guards):
            self.passes += model.skips_changed(self.at_work.reroute)
        self.passes.append(_DenoiserPass(model.denoiser, model.call, self.at_work))

    def remove(self) -> None:
        """Leave the modules as they were."""
        self.at_work.gates, self.at_work.guards = (), ()
        self.at_work.drawings.forget()
        if self.at_work.read:
            self.at_work.read.close()
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
        self,
        gates: tuple[Gate, ...],
        guards: tuple[Guard, ...],
        read: Reader | None,
        drawings: Drawings,
    ) -> None:
        self.gates = gates
        self.guards = guards
        self.read = read
        self.drawings = drawings
        self.now = _Now()

    def reroute(self) -> Reroute | None:
        """What becomes of skip features in this thread's pass."""
        return self.now.reroute

    def open(self, rows: Tensor) -> None:
        """Open the gates for the rows of a condition, if they are new."""
        if not self.gates or self.now.again(rows):
            return
        tokens = self.read(rows) if self.read else [None] * len(rows)
        self.now.open(rows, [gate.additions(rows, tokens) for gate in self.gates])


class _Opened:
    """The gates as they are open for one condition."""

    def __init__(self, rows: Tensor, additions: list[Mapping[str, Addition]]) -> None:
        self.rows = rows
        self.additions = additions
        self.outputs: dict[str, Tensor] = {}
        self.version = None if _changeable(rows) else rows._version
        """Counts in-place changes of the rows; ``None`` if nothing may be kept."""

    def of(self, rows: Tensor) -> bool:
        """Whether these are its rows, unchanged."""
        return (
            rows is self.rows
            and self.version is not None
            and not _changeable(rows)
            and rows._version == self.version
        )


class _Now(threading.local):
    """What is open for the conditions that a thread's denoiser was given last, the newest first.

    Copies of a model start without any.
    """

    def __init__(self) -> None:
        self.recent: list[_Opened] = []
        self.reroute: Reroute | None = None

    @property
    def newest(self) -> _Opened:
        """What is open for the last condition; nothing before the first."""
        return self.recent[0] if self.recent else _Opened(torch.empty(0), [])

    def again(self, rows: Tensor) -> bool:
        """Whether gates are open for these rows already; these are then the newest."""
        found = next((one for one in self.recent if one.of(rows)), None)
        if found is None:
            return False
        self.recent.remove(found)
        self.recent.insert(0, found)
        return True

    def open(self, rows: Tensor, additions: list[Mapping[str, Addition]]) -> None:
        lasting = [one for one in self.recent if one.version is not None]
        self.recent = [_Opened(rows, additions), *lasting[: RECENT - 1]]

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

        def denoiser(step: Step) -> Tensor:
            self.at_work.open(step.condition.rows)
            self.at_work.now.reroute = step.reroute
            try:
                return call.run(self.found, step.latents, step.time, step.condition)
            finally:
                self.at_work.now.reroute = None

        answer: Denoiser = denoiser
        for guard in guards:
            answer = partial(guard.predict, answer)
        return call.result(answer(self.at_work.drawings.step(call, self.at_work.read)))


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
        now = self.at_work.now.newest
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
