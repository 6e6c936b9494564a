"""The record of a part that was made by another program and is read from its file."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from expunge.concepts import Concept
from expunge.edits.base import Base
from expunge.edits.component import Component, Provenance
from expunge.edits.payloads import Payload
from expunge.files import sha256
from expunge.versions import versions


def imported(
    payload: Payload, file: Path, base: Base, concepts: Iterable[Concept], **settings: Any
) -> Component:
    """A part that records where it is from.

    Args:
        payload: what it changes.
        file: the file or folder that it was read from.
        base: what it changes it of.
        concepts: what it claims to erase.
        settings: more that is known of how it was made.
    """
    own = {"file": file.name, "sha256": sha256(file), "form": payload.form}
    provenance = Provenance(
        method="imported",
        settings={**own, **settings},
        concepts=tuple(concepts),
        keep=(),
        seed=0,
        base=base,
        versions=versions(),
    )
    return Component(payload, provenance)
