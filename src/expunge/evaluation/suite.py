"""What a test suite consists of: prompts in groups, the labels expected of them, and a judge."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, Protocol

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from expunge.concepts import Concept
from expunge.files import digest
from expunge.registry import Registry
from expunge.seeding import derive

Role = Literal["efficacy", "retention"]


class Record(BaseModel):
    """A part of a result: immutable, with no unknown field and no number that isn't finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Prompt(Record):
    """One prompt with what a right picture of it shows."""

    text: Annotated[str, Field(min_length=1)]
    expected: dict[str, str]
    """Label by attribute, e.g. ``{"object": "santa claus", "style": "noto"}``."""
    sensitive: bool = False
    """Reports blur its pictures."""


class Group(Record):
    """Prompts that ask one question of a model."""

    name: str
    role: Role
    """``efficacy``: is the concept still drawn? ``retention``: is the rest still right?"""
    about: str
    prompts: Annotated[tuple[Prompt, ...], Field(min_length=1)]


class Shot(NamedTuple):
    """One picture to draw."""

    group: str
    prompt: Prompt
    seed: int
    """Of its noise."""

    @property
    def number(self) -> str:
        """A name for its picture that people can read, different for every prompt and seed."""
        words = re.sub(r"[^a-z0-9]+", "-", self.prompt.text.lower()).strip("-")[:60]
        return f"{words}-{digest([self.prompt.text, self.seed])[:6]}"


class Plan(Record):
    """Everything that one evaluation draws and asks, before a picture is made."""

    suite: str
    version: int
    """Changes whenever the numbers of an unchanged model would."""
    size: str
    concept: Concept
    attribute: str
    """What the concept is to the judge, e.g. ``object`` or ``style``."""
    label: str
    """The judge's name for the concept."""
    groups: tuple[Group, ...]
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    """Every prompt is drawn once for each of these."""
    notes: tuple[str, ...] = ()
    """What this plan leaves out, in words."""

    @model_validator(mode="after")
    def _shows_both_sides(self) -> "Plan":
        # A model that draws noise draws no erased concept either.
        if not self.of_role("efficacy"):
            raise ValueError("the plan has no efficacy group; what is erased must be measured too")
        if not self.of_role("retention"):
            raise ValueError("the plan has no retention group; what is kept must be measured too")
        return self

    def shots(self) -> list[Shot]:
        """Every picture to draw, group by group, prompt by prompt, seed by seed.

        Each prompt has noise of its own: pictures from one noise resemble each other, and
        intervals would be too narrow.
        """
        return [
            Shot(group.name, prompt, derive(seed, prompt.text) % 2**32)
            for group in self.groups
            for prompt in group.prompts
            for seed in self.seeds
        ]

    def of_role(self, role: Role) -> tuple[Group, ...]:
        return tuple(group for group in self.groups if group.role == role)

    def keeps(self, group: str) -> bool:
        """Whether this is the name of a group of prompts to keep."""
        return any(group == kept.name for kept in self.of_role("retention"))


class Judgement(Record):
    """What a judge says of one picture."""

    labels: dict[str, str]
    """The likeliest label by attribute."""
    confidences: dict[str, float]
    """Its probability by attribute."""
    clip_score: float
    """How well the picture fits its prompt, 0 to 100."""


class Judge(Protocol):
    """Labels pictures; the same pictures always get the same judgements."""

    name: str
    decision: str
    """The rule from probabilities to a label, with its threshold, in words."""

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the only pictures it can judge; ``None`` is any."""
        ...

    @property
    def sha256(self) -> str:
        """Of the files that decide a judgement."""
        ...

    def judge(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> list[Judgement]: ...

    def features(self, pictures: Sequence[Image.Image]) -> Tensor:
        """``[pictures, width]``, for distances."""
        ...


@dataclass(frozen=True)
class Suite:
    """A family of plans and the judge for their pictures."""

    plan: Callable[..., Plan]
    """``plan(concept, *, erased, size, seeds)``; ``erased`` are all concepts of the edit."""
    judge: Callable[[], Judge]


SUITES: Registry[Suite] = Registry(
    "suite", {"emoji": "expunge.evaluation.emoji:SUITE"}, entry_points="expunge.suites"
)
