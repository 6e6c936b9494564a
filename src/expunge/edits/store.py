"""An edit as one safetensors file: tensors numbered by component, provenance in the header."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from expunge.concepts import explain
from expunge.edits.payloads import from_tensors
from expunge.errors import ExpungeError
from expunge.files import replacing

if TYPE_CHECKING:
    from expunge.edits.edit import Edit

FORMAT = 1


def save(edit: "Edit", path: str | os.PathLike[str]) -> None:
    """Write ``edit`` whole or not at all."""
    components = [
        {
            "form": part.payload.form,
            "names": part.payload.names,
            "provenance": part.provenance.model_dump(mode="json"),
        }
        for part in edit.components
    ]
    tensors = {
        f"{index}:{name}": tensor.detach().cpu().contiguous()
        for index, part in enumerate(edit.components)
        for name, tensor in part.payload.tensors().items()
    }
    header = json.dumps({"format": FORMAT, "id": edit.id, "components": components})
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"expunge": header})


def load(path: str | os.PathLike[str]) -> "Edit":
    """Read an edit and check that it is whole."""
    from expunge.edits.edit import Component, Edit, Provenance

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
    header = json.loads(metadata["expunge"])
    if header.get("format") != FORMAT:
        raise ExpungeError(
            f"{path}: format {header.get('format')!r} is of another version of expunge"
        )
    try:
        edit = Edit(
            tuple(
                Component(
                    from_tensors(
                        part["form"],
                        tuple(part["names"]),
                        {
                            name.partition(":")[2]: tensor
                            for name, tensor in tensors.items()
                            if name.partition(":")[0] == str(index)
                        },
                    ),
                    Provenance.model_validate(part["provenance"]),
                )
                for index, part in enumerate(header["components"])
            )
        )
    except ValidationError as error:
        raise ExpungeError(f"{path}: wrong provenance: {explain(error)}") from None
    if edit.id != header["id"]:
        raise ExpungeError(f"{path}: the content doesn't match its id; the file was changed")
    return edit
