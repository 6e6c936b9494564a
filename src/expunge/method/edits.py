"""The edit that a method's parts make."""

from collections.abc import Sequence
from functools import cache

from expunge.concepts import Policy
from expunge.edits.component import Base, Component, Provenance
from expunge.edits.edit import Edit
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
    """An edit with a component for each part, which says how it came about.

    Args:
        method: what made the parts.
        model: what they are made for.
        policy: what was erased and kept.
        parts: what each of some concepts changes.
        seed: what decided the random draws.
        steps: of a training.
    """
    fingerprint = cache(model.fingerprint)

    def component(part: Part) -> Component:
        provenance = Provenance(
            method=method.name,
            settings=method.model_dump(mode="json"),
            concepts=part.concepts,
            keep=policy.kept,
            seed=seed,
            base=Base(
                name=model.name,
                fingerprint=fingerprint(part.payload.names),
                text="" if part.payload.names else model.text_fingerprint(),
            ),
            steps=steps,
            versions=versions(),
        )
        return Component(part.payload, provenance)

    return Edit(tuple(map(component, parts)))
