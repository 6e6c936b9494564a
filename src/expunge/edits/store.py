"""An edit as one safetensors file: tensors numbered by component, provenance in the header."""

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ValidationError
from torch import Tensor

from expunge.concepts import RECORD, explain
from expunge.edits.component import Component, Provenance
from expunge.edits.membranes import Membranes
from expunge.edits.negative_prompt import NegativePrompt
from expunge.edits.payloads import CHANGES, Payload, stored
from expunge.edits.residual_gates import ResidualGates
from expunge.edits.safe_guidance import SafeGuidance
from expunge.edits.safree import Safree
from expunge.errors import ExpungeError
from expunge.files import PathLike
from expunge.tensors import Selection, holds, unread, write

FORMAT = 1
ENTRY = "expunge"
"""Of the header, for the record."""

FORMS: Mapping[str, type[Payload]] = {
    **CHANGES,
    Membranes.form: Membranes,
    NegativePrompt.form: NegativePrompt,
    ResidualGates.form: ResidualGates,
    SafeGuidance.form: SafeGuidance,
    Safree.form: Safree,
}
"""What an edit may hold, by form."""


class _Part(BaseModel):
    form: str
    names: tuple[str, ...]
    provenance: Provenance


class _Record(BaseModel):
    format: Literal[1]
    id: str
    components: tuple[_Part, ...]


def save(components: tuple[Component, ...], identity: str, path: PathLike) -> None:
    """Write the components whole or not at all."""
    described = [
        {
            "form": part.payload.form,
            "names": part.payload.names,
            "provenance": part.provenance.model_dump(mode="json"),
        }
        for part in components
    ]
    tensors = {
        f"{index}:{name}": tensor
        for index, part in enumerate(components)
        for name, tensor in part.payload.tensors().items()
    }
    record = {"format": FORMAT, "id": identity, "components": described}
    write(path, ENTRY, record, tensors, checksum=False)  # the id is one


def load(path: PathLike) -> tuple[tuple[Component, ...], str]:
    """Read the components and the id they were saved under.

    Raises:
        ExpungeError: there is no such file, or it isn't a whole edit of this format.
    """
    header, tensors = unread(path, ENTRY, "edit")
    if header.get("format") != FORMAT:
        raise ExpungeError(
            f"{path}: format {header.get('format')!r} is of another version of expunge"
        )
    try:
        record = _Record.model_validate(header, context=RECORD)
        parts = enumerate(record.components)
        return tuple(_component(part, at, tensors) for at, part in parts), record.id
    except ValidationError as error:
        raise ExpungeError(f"{path}: not a whole expunge edit: {explain(error)}") from None
    except ExpungeError as error:
        raise ExpungeError(f"{path}: not a whole expunge edit: {error}") from None
    except (RuntimeError, ValueError, TypeError, LookupError) as error:
        raise ExpungeError(
            f"{path}: not a whole expunge edit; its tensors don't fit ({error})"
        ) from None


def is_edit(path: PathLike) -> bool:
    """Whether a file says in its header that it is an edit."""
    return holds(path, ENTRY)


def _component(part: _Part, index: int, tensors: Mapping[str, Tensor]) -> Component:
    mark = f"{index}:"
    names = {name.removeprefix(mark): name for name in tensors if name.startswith(mark)}
    own = Selection(tensors, names)
    return Component(stored(FORMS, part.form, part.names, own), part.provenance)
