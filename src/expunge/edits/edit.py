"""The ``Edit``: an immutable record that can be applied, combined, reverted and saved."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

from expunge.concepts import Concept
from expunge.edits import store
from expunge.edits.applied import Applied
from expunge.edits.component import Component, Provenance
from expunge.edits.gates import Gate, gates_together
from expunge.edits.guards import Guard
from expunge.edits.payloads import Change
from expunge.edits.ridge import Ridge, check_joint
from expunge.errors import ExpungeError
from expunge.files import digest
from expunge.models import Model
from expunge.spelling import spelling


@dataclass(frozen=True, eq=False)
class Edit:
    """What changes in a model so that concepts are no longer drawn.

    ``edit.apply(model)`` changes the weights in place and ``edit.revert(model)`` puts them back
    bit for bit; ``with edit.applied(model):`` does both. ``a + b`` has the changes of both, and
    ``(a + b) - b`` is ``a``. Closed-form edits are solved together: their sum is the edit that
    would have erased both at once. Other changes are each computed from the base weights.
    ``edit.only("santa claus")`` and ``edit.without("ghost")`` pick the parts of some concepts.
    Gates don't change weights; they add to outputs, depending on the prompt. Guards change the
    denoiser's predictions.
    """

    components: tuple[Component, ...]

    def __post_init__(self) -> None:
        if not self.components:
            raise ExpungeError("an edit without any change; nothing is left after the subtraction")
        if len(set(self.ids)) < len(self.ids):
            raise ExpungeError("the same change is in this edit twice")
        _check_payloads(self.components)

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(component.id for component in self.components)

    @cached_property
    def id(self) -> str:
        """Sixteen hex digits; two edits with the same changes have the same id."""
        return self.ids[0] if len(self.ids) == 1 else digest(sorted(self.ids))[:16]

    @property
    def concepts(self) -> tuple[Concept, ...]:
        listed = (concept for part in self.components for concept in part.provenance.concepts)
        return tuple(dict.fromkeys(listed))  # two stages of a method have the same

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that change, and the weights of gated modules; each once."""
        names = (name for component in self.components for name in component.payload.names)
        return tuple(dict.fromkeys(names))

    @property
    def changed(self) -> tuple[str, ...]:
        """The parameters that change, each once."""
        changes = (part.payload for part in self.components if isinstance(part.payload, Change))
        return tuple(dict.fromkeys(name for change in changes for name in change.names))

    @property
    def gated(self) -> bool:
        """Whether a part depends on the prompt, so that no weights can do the same."""
        return any(isinstance(part.payload, Gate) for part in self.components)

    @property
    def guarded(self) -> bool:
        """Whether a part changes the denoiser's predictions, so that no weights can do the same."""
        return any(isinstance(part.payload, Guard) for part in self.components)

    @property
    def provenance(self) -> tuple[Provenance, ...]:
        return tuple(component.provenance for component in self.components)

    @property
    def size(self) -> int:
        """Size of all tensors in bytes."""
        tensors = (t for part in self.components for t in part.payload.tensors().values())
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def summary(self) -> str:
        """One line: what is erased, how, in which parameters, at what size."""
        parts = (
            f"{', '.join(concept.target for concept in part.concepts)} ({part.method})"
            for part in self.provenance
        )
        return f"{' + '.join(parts)}: {len(self.names)} parameters, {self.size / 1e6:.2f} MB"

    def __add__(self, other: "Edit") -> "Edit":
        return Edit(self.components + other.components)

    def __sub__(self, other: "Edit") -> "Edit":
        if missing := set(other.ids) - set(self.ids):
            raise ExpungeError(
                f"can't subtract {', '.join(sorted(missing))}: the edit holds {', '.join(self.ids)}"
            )
        return Edit(tuple(part for part in self.components if part.id not in other.ids))

    def only(self, *targets: str) -> "Edit":
        """The parts that erase these concepts, given by their target words.

        Raises:
            ExpungeError: the edit doesn't erase one of them, or only together with others.
        """
        return Edit(self._about(targets))

    def without(self, *targets: str) -> "Edit":
        """The edit without the parts for these concepts, which are then drawn again.

        Raises:
            ExpungeError: the edit doesn't erase one of them, or only together with others, or no
                part is left.
        """
        taken = self._about(targets)
        return Edit(tuple(part for part in self.components if part not in taken))

    def _about(self, targets: tuple[str, ...]) -> tuple[Component, ...]:
        """The components of these concepts."""
        wanted = {spelling(words) for words in targets}
        held = {spelling(concept.target): concept.target for concept in self.concepts}
        if missing := sorted(wanted - held.keys()):
            raise ExpungeError(
                f"this edit doesn't erase {missing[0]!r}; it erases {', '.join(held.values())}"
            )
        found = []
        for part in self.components:
            own = {spelling(concept.target) for concept in part.provenance.concepts}
            inside, outside = sorted(own & wanted), sorted(own - wanted)
            if inside and outside:
                others = ", ".join(held[name] for name in outside)
                raise ExpungeError(
                    f"{part.provenance.method} erased {held[inside[0]]!r} together with {others}, "
                    "in one change that can't be taken apart; erase them in calls of their own and "
                    "add the edits up"
                )
            if inside:
                found.append(part)
        return tuple(found)

    def check_base(self, model: Model) -> None:
        """Check that the edit was made for this model, and would show in it.

        Raises:
            ExpungeError: it was made for another one, or its weights can't be told now.
        """
        model.weights.check()
        bases = {(part.payload.names, part.provenance.base): part for part in self.components}
        for component in bases.values():  # parts of the same layers are checked once
            component.provenance.base.check(model, component.payload.names)

    def apply(self, model: Model) -> None:
        """Change the model's weights in place.

        Raises:
            ExpungeError: the edit was made for another model, or is already applied to this one.
        """
        with model.lock:
            at_work = Applied.to(model)
            if double := set(self.ids) & {part.id for part in at_work.components}:
                raise ExpungeError(f"edit {min(double)} is applied to this model already")
            self.check_base(model)
            together = (*at_work.components, *self.components)
            _check_payloads(together)
            at_work.become(together, self.changed)

    def revert(self, model: Model) -> None:
        """Undo the edit; others stay. After the last one, the weights equal the base bit for bit.

        Raises:
            ExpungeError: the edit isn't applied.
        """
        with model.lock:
            at_work = Applied.to(model)
            if missing := set(self.ids) - {part.id for part in at_work.components}:
                raise ExpungeError(f"edit {min(missing)} isn't applied to this model")
            model.weights.check()
            rest = tuple(part for part in at_work.components if part.id not in self.ids)
            at_work.become(rest, self.changed)

    @contextmanager
    def applied(self, model: Model) -> Iterator[Model]:
        """``with edit.applied(model):`` draws edited pictures inside and base pictures after.

        Other threads that change the model or draw with it wait until the block ends, so that
        each thread draws with its own edits.
        """
        with model.lock:
            self.apply(model)
            try:
                yield model
            finally:
                self.revert(model)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file that holds the change and its provenance."""
        store.save(self.components, self.id, path)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "Edit":
        """Read an edit that ``save`` wrote.

        Raises:
            ExpungeError: there is no such file, or it isn't a whole edit.
        """
        components, identity = store.load(path)
        edit = Edit(components)
        if edit.id != identity:
            raise ExpungeError(f"{path}: the content doesn't match its id; the file was changed")
        return edit


def _check_payloads(components: tuple[Component, ...]) -> None:
    payloads = [component.payload for component in components]
    check_joint([payload for payload in payloads if isinstance(payload, Ridge)])
    gates_together(payloads)
