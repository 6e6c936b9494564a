"""Making an edit from a method's parts."""

from collections.abc import Sequence
from functools import cache, partial

from expunge.concepts import Policy
from expunge.edits.base import Base
from expunge.edits.component import Component, Provenance
from expunge.edits.edit import Edit
from expunge.edits.guards import Guard
from expunge.edits.payloads import Change, Payload
from expunge.errors import ExpungeError
from expunge.method.base import Method, Part
from expunge.models import Model
from expunge.versions import versions


def edit_of(
    method: Method,
    model: Model,
    policy: Policy,
    parts: Sequence[Part],
    *,
    seed: int,
    steps: int | None = None,
) -> Edit:
    """An edit with a component for each part; each component records how it was made.

    Args:
        method: the method that made the parts.
        model: the model that they are made for.
        policy: what was erased and kept.
        parts: the payload for one or more concepts each.
        seed: the seed of all random draws.
        steps: the number of training steps, if there were any.

    Raises:
        ExpungeError: a part changes nothing.
    """
    for part in parts:
        _check_changes(method, model, part)
    base = cache(partial(Base.of, model))

    def component(part: Part) -> Component:
        provenance = Provenance(
            method=method.name,
            settings=method.model_dump(mode="json"),
            concepts=part.concepts,
            keep=policy.kept,
            seed=seed,
            base=base(part.payload.names, part.payload.reads_text),
            steps=steps,
            versions=versions(),
        )
        return Component(part.payload, provenance)

    return Edit(tuple(map(component, parts)))


def _check_changes(method: Method, model: Model, part: Part) -> None:
    """Refuse a part that leaves the model exactly as it is: it would be recorded as erasing."""
    if not _changes(part.payload, model):
        words = ", ".join(concept.target for concept in part.concepts)
        raise ExpungeError(
            f"{method.name}: nothing would change for {words}; the anchor may read like the "
            "concept, the training may be too short for all concepts to have a turn, or its loss "
            "may leave nothing to change"
        )


def _changes(payload: Payload, model: Model) -> bool:
    """Whether anything would be different; a NaN is."""
    if isinstance(payload, Change):
        return any(
            bool((payload.change(name, model.base_weight(name)) != 0).any())
            for name in payload.names
        )
    if isinstance(payload, Guard):
        return payload.acts()
    factors = [one for key, one in payload.tensors().items() if key.split(":")[0] == "up"]
    return not factors or any(bool((one != 0).any()) for one in factors)
