"""What is applied to a model: one state, changed by one thread at a time."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from expunge.edits.component import Component
from expunge.edits.gates import gates_together
from expunge.edits.guards import Guard
from expunge.edits.installed import Installed
from expunge.edits.payloads import Change, together
from expunge.errors import ExpungeError
from expunge.models import Model

BLOCK = 2**20
"""Numbers that are added at a time."""


class Applied:
    """The components at work in a model: changed weights, gates and guards.

    Each weight is its base value plus the sum of the components' changes. So any component can be
    removed again, and removing the last one restores the base bit for bit.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.components: tuple[Component, ...] = ()
        """In the order in which they were applied."""
        self.installed: Installed | None = None

    @staticmethod
    def to(model: Model) -> "Applied":
        """What is applied to a model; always the same object for a model."""
        with model.lock:
            found: Applied = model.attached.setdefault(Applied, Applied(model))
            return found

    def become(self, components: Sequence[Component], names: Sequence[str]) -> None:
        """Apply exactly these components; ``names`` are the parameters that may change.

        Raises:
            ExpungeError: they can't act together, or a weight wouldn't be finite. The model is
                then unchanged.
        """
        model, payloads = self.model, [component.payload for component in components]
        with model.lock:
            gates = gates_together(payloads)
            guards = [payload for payload in payloads if isinstance(payload, Guard)]
            self._write(together(payloads), names)
            if self.installed:
                self.installed.remove()
            self.installed = Installed(model, gates, guards) if gates or guards else None
            self.components = tuple(components)

    def _write(self, changes: Sequence[Change], names: Sequence[str]) -> None:
        """Write weight after weight; after an error, restore those written so far."""
        written: list[str] = []
        self.model.weights.replaced.expect(names)
        try:
            for name in names:
                weight = self._rounded(changes, name)
                written.append(name)
                self.model.weights.write({name: weight})
        except BaseException:
            self._restore(written)
            raise

    def _rounded(self, changes: Sequence[Change], name: str) -> Tensor | None:
        """A weight in the precision of the model."""
        weight = _edited_weight(self.model, changes, name)
        if weight is None:
            return None
        weight = weight.to(self.model.denoiser.get_parameter(name).dtype)
        _check_finite(name, weight)
        return weight

    def _restore(self, names: Sequence[str]) -> None:
        """Put back what the components had made of these weights.

        Raises:
            ExpungeError: a component can't be read again; none is applied any more.
        """
        before = together([component.payload for component in self.components])
        try:
            for name in names:
                self.model.weights.write({name: _edited_weight(self.model, before, name)})
        except BaseException:
            self.model.weights.write(dict.fromkeys(tuple(self.model.weights.replaced)))
            if self.installed:
                self.installed.remove()
            self.installed, self.components = None, ()
            raise


def check_unedited(model: Model, why: str) -> None:
    """Check that no edit is applied to a model.

    Raises:
        ExpungeError: one is applied; the message ends with ``why`` that matters.
    """
    if Applied.to(model).components:
        raise ExpungeError(f"the model has an edit applied; revert it, {why}")


def edited_weights(
    model: Model, components: Sequence[Component], names: Sequence[str]
) -> dict[str, Tensor | None]:
    """Each parameter's base value plus its changes, float64; ``None`` where nothing changes it."""
    changes = together([part.payload for part in components])
    return {name: _edited_weight(model, changes, name) for name in names}


def _edited_weight(model: Model, changes: Sequence[Change], name: str) -> Tensor | None:
    weight: Tensor | None = None
    for payload in changes:
        if name in payload.names:
            base = model.base_weight(name)
            weight = edited(name, base if weight is None else weight, payload.change(name, base))
    return weight


def edited(name: str, weight: Tensor, change: Tensor) -> Tensor:
    """A parameter plus a change of it, float64, which takes the place of the change.

    Raises:
        ExpungeError: the change has another shape, or the result isn't finite.
    """
    if change.shape != weight.shape:
        raise ExpungeError(
            f"{name}: the edit has shape {tuple(change.shape)}, the model {tuple(weight.shape)}"
        )
    _add(change, weight)
    _check_finite(name, change)
    return change


def _check_finite(name: str, weight: Tensor) -> None:
    if not bool(torch.isfinite(weight).all()):
        raise ExpungeError(f"{name}: the edited weights aren't finite; the model is unchanged")


def _add(total: Tensor, part: Tensor) -> None:
    """Add in place, some rows at a time: torch would first convert all of ``part``."""
    if not part.ndim:
        total.add_(part)
        return
    rows = max(1, BLOCK * len(part) // max(1, part.numel()))
    for at in range(0, len(part), rows):
        total[at : at + rows].add_(part[at : at + rows])


@contextmanager
def tried(model: Model, payload: Change) -> Iterator[Model]:
    """The base model with a change, inside the block, for a method to try it out."""
    with model.lock:
        try:
            for name in payload.names:
                base = model.base_weight(name)
                model.weights.write({name: base.double() + payload.change(name, base)})
            yield model
        finally:
            model.weights.write(dict.fromkeys(payload.names))


@contextmanager
def shown(model: Model, weights: Mapping[str, Tensor]) -> Iterator[Model]:
    """The base model with these parameters, by name, inside the block."""
    with model.lock:
        model.weights.replaced.expect(weights)
        try:
            model.weights.write(weights)
            yield model
        finally:
            model.weights.write(dict.fromkeys(weights))
