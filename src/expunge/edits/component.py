"""One computed change with the record of how it came to be; an edit is one or several of them."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from expunge.concepts import Concept
from expunge.edits.payloads import Payload
from expunge.files import digest


class Base(BaseModel):
    """The model that an edit was made for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """The user's name for it: ``emoji``, a folder, or a hub id."""
    fingerprint: str
    """SHA-256 of the parameters that the edit changes (see ``Model.fingerprint``)."""
    text: str = ""
    """SHA-256 of the text encoders, for guards, which change no parameter."""

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without an empty ``text``: the ids of edits depend on every entry."""
        record: dict[str, Any] = write(self)
        return {key: value for key, value in record.items() if key != "text" or value}


class Provenance(BaseModel):
    """How an edit came to be: enough to make it again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    settings: dict[str, Any]
    concepts: tuple[Concept, ...]
    keep: tuple[str, ...]
    seed: int
    steps: int | None = None
    """Optimiser steps that the training took; fewer than planned if it ended early."""
    base: Base
    versions: dict[str, str]


@dataclass(frozen=True, eq=False)
class Component:
    """One computed change with its provenance; an edit is one or several of them."""

    payload: Payload
    provenance: Provenance

    @cached_property
    def id(self) -> str:
        """Sixteen hex digits that depend on every number and every setting."""
        total = hashlib.sha256(digest(self.provenance.model_dump(mode="json")).encode())
        for name, tensor in sorted(self.payload.tensors().items()):
            total.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
            data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
            total.update(data.numpy().tobytes())
        return total.hexdigest()[:16]
