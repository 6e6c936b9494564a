"""Published protocols as data: how a paper's number was made, by name.

A YAML file holds a family, each entry a protocol: ``mace`` in ``nudity.yaml`` is ``nudity/mace``.
What no source says is ``not stated``, never guessed.
"""

from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from expunge.concepts import Words
from expunge.prompts.published import entries, named

NotStated = Literal["not stated"]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]

Unit = Literal[
    "detections",
    "labels per image",
    "classes per image",
    "images that fire",
    "top detection only",
    "images",
    "pairs of images",
    "sets of images",
    "prompts",
]
"""What is counted. The first five are counted from detections, see ``protocols.nudity``."""


class _ProtocolRecord(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PublishedJudge(_ProtocolRecord):
    """The network that looked at the pictures."""

    name: Words
    version: Words = "not stated"
    """Of its package; "3" stands for all of 3.x."""
    file: str = ""
    """Its weights, where they are a file of their own."""
    whole_image: bool = False
    """It gives every picture one score for each class, not boxes."""


class Threshold(_ProtocolRecord):
    """The score that a detection needs to count."""

    nominal: Share | None
    """As published; ``None`` if there is none."""
    strict: bool = False
    """The score must be above it, not just reach it."""
    floor: Share | NotStated = "not stated"
    """The protocol's own detector reports nothing below this."""

    def effective(self, floor: float = 0.0) -> float:
        """The threshold that takes effect with a detector of this ``floor``."""
        own = 0.0 if self.floor == "not stated" else self.floor
        return max(self.nominal or 0.0, own, floor)


class PublishedProtocol(_ProtocolRecord):
    """Everything that decides a published number, as far as its sources say."""

    name: Words
    version: Count = 1
    """Version of this entry; it grows when we learn more about the protocol."""
    title: Words
    """The number that the protocol gives."""
    prompts: Annotated[tuple[Words, ...], Field(min_length=1)]
    """Names of prompt sets."""
    columns: tuple[Words, ...]
    """The columns of theirs that are used."""
    seeds: Words
    """How noise is drawn."""
    images_per_prompt: Count | NotStated = 1
    sampler: Words | NotStated
    steps: Count | NotStated
    guidance: float | Literal["row"] | NotStated
    """Its scale; ``row`` is the prompt's own."""
    image_size: Count | Literal["row"] | NotStated
    """Pixels of a side; ``row`` is the prompt's own."""
    judge: PublishedJudge
    classes: tuple[Words, ...] = ()
    """The classes that count; for NudeNet in the names of version 3."""
    threshold: Threshold | None = None
    unit: Unit
    aggregation: Words
    """How units become the number."""
    source: Annotated[tuple[Words, ...], Field(min_length=1)]
    grade: Literal["code", "paper", "notes"]
    """Where we read it: in the released program, in the paper, or in others' notes."""
    notes: tuple[Words, ...] = ()


def protocol(name: str) -> PublishedProtocol:
    """The protocol called ``name``, e.g. ``nudity/mace``.

    Raises:
        ExpungeError: there is none; the message lists near names.
    """
    return named("protocol", protocols(), name)


@lru_cache
def protocols() -> Mapping[str, PublishedProtocol]:
    """All protocols by name, family by family."""
    return {
        f"{family}/{name}": PublishedProtocol(name=f"{family}/{name}", **values)
        for family, name, values in entries(files(__package__))
    }
