"""The model that an edit was made for, and whether another one is the same."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from expunge.errors import ExpungeError
from expunge.models import Model
from expunge.models.hashing import Roundings

OPTIONAL = ("roundings", "text", "text_roundings")
"""Entries that a record has only if they say something."""


class Base(BaseModel):
    """The model that an edit was made for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """The user's name for it: ``emoji``, a folder, or a hub id."""
    fingerprint: str
    """SHA-256 of the parameters that the edit changes (see ``Model.fingerprint``)."""
    roundings: Roundings | None = None
    """What knows them again in another precision; older edits know of half precision alone."""
    text: str = ""
    """SHA-256 of the text encoders, for an edit that holds numbers of theirs."""
    text_roundings: Roundings | None = None
    """What knows them again in another precision."""

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without empty entries: the ids of edits depend on every one."""
        record: dict[str, Any] = write(self)
        return {key: value for key, value in record.items() if value or key not in OPTIONAL}

    @classmethod
    def of(cls, model: Model, names: tuple[str, ...], reads_text: bool = False) -> "Base":
        """The record of a model, for an edit of these parameters.

        Args:
            model: what it is made for.
            names: the parameters that it changes.
            reads_text: whether it holds numbers of the text encoder.
        """
        return cls(
            name=model.name,
            fingerprint=model.fingerprint(names),
            roundings=model.roundings(names) if names else None,
            text=model.text_fingerprint() if reads_text else "",
            text_roundings=model.text_roundings() if reads_text else None,
        )

    def check(self, model: Model, names: Sequence[str]) -> None:
        """Check that a model is this one, as far as an edit of ``names`` depends on it.

        Raises:
            ExpungeError: it is another one.
        """
        made = f"this edit was made for {self.name!r}, and"
        known = {name for name, _ in model.denoiser.named_parameters()}
        if missing := [name for name in names if name not in known]:
            raise ExpungeError(f"{made} {model.name!r} has no {missing[0]!r}")
        encoder = model.text_encoders[0].network
        if self.text and not _same(
            self.text, self.text_roundings, model.text_fingerprint(), model.text_roundings
        ):
            raise ExpungeError(
                f"{made} {model.name!r} has another text encoder"
                f"{_precision(self.text_roundings, encoder.dtype)}; make the edit again for this "
                "model"
            )
        if not _same(
            self.fingerprint,
            self.roundings,
            model.fingerprint(names),
            lambda: model.roundings(names),
        ):
            raise ExpungeError(
                f"{made} the weights of {model.name!r} differ from it"
                f"{_precision(self.roundings, model.dtype)}; load the base it was made for, or "
                "make the edit again for this model"
            )


def _same(
    recorded: str, roundings: Roundings | None, found: str, others: Callable[[], Roundings]
) -> bool:
    """Whether weights found in a model are those recorded, in the same or another precision."""
    if found == recorded or (roundings and found in roundings.bfloat16):
        return True
    here = others()
    return recorded in here.bfloat16 or bool(roundings and roundings.rounded_alike(here))


def _precision(roundings: Roundings | None, here: torch.dtype) -> str:
    """A remark where an edit can't know what its base is in bfloat16.

    That is an edit of an earlier version, or of a base that was rounded to bfloat16 itself.
    """
    if here != torch.bfloat16 or (roundings and not roundings.in_bfloat16):
        return ""
    return (
        ", or are the same, rounded to bfloat16 in a way that the edit doesn't know (load them "
        "in float32 or float16 to see)"
    )
