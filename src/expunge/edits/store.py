"""An edit as one safetensors file: tensors numbered by component, provenance in the header."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from expunge.concepts import RECORD, explain
from expunge.edits.component import Component, Provenance
from expunge.edits.membranes import Membranes
from expunge.edits.negative_prompt import NegativePrompt
from expunge.edits.payloads import CHANGES, Payload, stored
from expunge.edits.residual_gates import ResidualGates
from expunge.errors import ExpungeError
from expunge.files import PathLike, replacing

FORMAT = 1

FORMS: Mapping[str, type[Payload]] = {
    **CHANGES,
    Membranes.form: Membranes,
    NegativePrompt.form: NegativePrompt,
    ResidualGates.form: ResidualGates,
}
"""What an edit may hold, by form."""


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
        f"{index}:{name}": tensor.detach().cpu().contiguous()
        for index, part in enumerate(components)
        for name, tensor in part.payload.tensors().items()
    }
    header = json.dumps({"format": FORMAT, "id": identity, "components": described})
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"expunge": header})


def load(path: PathLike) -> tuple[tuple[Component, ...], str]:
    """Read the components and the id they were saved under."""
    header, tensors = _read(path)
    if header.get("format") != FORMAT:
        raise ExpungeError(
            f"{path}: format {header.get('format')!r} is of another version of expunge"
        )
    try:
        components = tuple(
            _component(part, index, tensors) for index, part in enumerate(header["components"])
        )
    except ValidationError as error:
        raise ExpungeError(f"{path}: wrong provenance: {explain(error)}") from None
    return components, str(header["id"])


def is_edit(path: PathLike) -> bool:
    """Whether a file is an edit that ``save`` wrote, as far as its header says."""
    if not Path(path).is_file():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return "expunge" in (file.metadata() or {})
    except SafetensorError:
        return False


def _read(path: PathLike) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not Path(path).is_file():
        raise ExpungeError(f"{path}: no such edit")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ExpungeError(f"{path}: not a safetensors file, or cut short ({error})") from None
    if "expunge" not in metadata:
        raise ExpungeError(f"{path}: these tensors are no expunge edit (no provenance inside)")
    header: dict[str, Any] = json.loads(metadata["expunge"])
    return header, tensors


def _component(part: Mapping[str, Any], index: int, tensors: Mapping[str, Tensor]) -> Component:
    mark = f"{index}:"
    own = {n.removeprefix(mark): tensor for n, tensor in tensors.items() if n.startswith(mark)}
    payload = stored(FORMS, part["form"], tuple(part["names"]), own)
    return Component(payload, Provenance.model_validate(part["provenance"], context=RECORD))
