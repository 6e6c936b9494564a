"""One computed change with the record of how it came to be; an edit is one or several of them."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from expunge.concepts import Concept
from expunge.edits.base import Base
from expunge.edits.payloads import Payload
from expunge.files import digest
from expunge.tensors import Selection


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
    """On the CPU, wherever it was made: so edits add up, and applying one takes what it needs."""
    provenance: Provenance

    def __post_init__(self) -> None:
        tensors = self.payload.tensors()
        if isinstance(tensors, Selection) and tensors.unread:
            return  # nothing to move, and not to be read before it is needed
        if any(tensor.device.type != "cpu" for tensor in tensors.values()):
            here = {name: tensor.cpu() for name, tensor in tensors.items()}
            object.__setattr__(self, "payload", type(self.payload).of(self.payload.names, here))

    @cached_property
    def id(self) -> str:
        """Sixteen hex digits that depend on every number and every setting."""
        total = hashlib.sha256(digest(self.provenance.model_dump(mode="json")).encode())
        tensors = self.payload.tensors()
        for name in sorted(tensors):
            tensor = tensors[name]
            total.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
            data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
            total.update(data.numpy().data)
        return total.hexdigest()[:16]
