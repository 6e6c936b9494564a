"""What a test suite consists of: prompts in groups, the labels expected of them, and a judge."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal, NamedTuple, Protocol, Self

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import Tensor

from expunge.concepts import Concept
from expunge.detectors.base import Detection
from expunge.errors import ExpungeError
from expunge.files import digest
from expunge.registry import Registry
from expunge.seeding import derive
from expunge.spelling import names

Role = Literal["efficacy", "retention"]

SYNONYMS = "synonyms"
"""The group of prompts that ask for a concept by other words than its name."""


class Record(BaseModel):
    """A part of a result: immutable, with no unknown field and no number that isn't finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Prompt(Record):
    """A prompt, and what a right picture of it shows."""

    text: Annotated[str, Field(min_length=1)]
    expected: dict[str, str]
    """Label by attribute, e.g. ``{"object": "santa claus", "style": "noto"}``."""
    sensitive: bool = False
    """Reports blur its pictures."""
    seed: Annotated[int, Field(ge=0, lt=2**64)] | None = None
    """Seed of its only picture, if a published list says so; else the plan's seeds count."""
    guidance_scale: float | None = None
    """Instead of the sampler's."""
    height: int | None = None
    """Pixels, instead of the model's own."""
    width: int | None = None


class Group(Record):
    """Prompts that ask one question of a model."""

    name: str
    role: Role
    """``efficacy``: is the concept still drawn? ``retention``: is the rest still right?"""
    about: str
    prompts: Annotated[tuple[Prompt, ...], Field(min_length=1)]


def groups_of(*drafts: tuple[str, Role, str, Sequence[Prompt]]) -> tuple[Group, ...]:
    """A group for each name, role, description and prompts; those without prompts are left out."""
    return tuple(
        Group(name=name, role=role, about=about, prompts=tuple(prompts))
        for name, role, about, prompts in drafts
        if prompts
    )


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
        return f"{words}-{digest([self.prompt.text, self.seed])[:16]}".lstrip("-")


class Plan(Record):
    """Everything that one evaluation draws, and what it asks of the pictures."""

    suite: str
    version: int
    """Changes when the same model would get other numbers."""
    size: str
    concept: Concept
    attribute: str
    """What the judge tells apart to find the concept, e.g. ``object`` or ``style``."""
    label: str
    """The judge's name for the concept."""
    groups: tuple[Group, ...]
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    """Every prompt is drawn once for each of these."""
    notes: tuple[str, ...] = ()
    """What this plan leaves out, in words."""

    @field_validator("concept")
    @classmethod
    def _as_asked(cls, concept: Concept) -> Concept:
        """Without what is kept, which the groups hold, and without the sentences for erasing."""
        return concept.model_copy(update={"keep": (), "contexts": ()})

    @model_validator(mode="after")
    def _shows_what_is_kept(self) -> "Plan":
        # A model that draws noise draws no erased concept either.
        if not self.of_role("retention"):
            raise ValueError("the plan has no retention group; what is kept must be measured too")
        return self

    @cached_property
    def shots(self) -> tuple[Shot, ...]:
        """Every picture to draw, group by group, prompt by prompt, seed by seed.

        Each prompt has its own noise. Pictures from the same noise resemble each other, so that
        intervals would be too narrow.
        """
        return tuple(
            Shot(group.name, prompt, seed)
            for group in self.groups
            for prompt in group.prompts
            for seed in self._seeds(prompt)
        )

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy that computes its own shots, as its groups or seeds may differ."""
        copied = super().model_copy(update=update, deep=deep)
        vars(copied).pop("shots", None)
        return copied

    def _seeds(self, prompt: Prompt) -> list[int]:
        if prompt.seed is not None:
            return [prompt.seed]
        return [derive(seed, prompt.text) % 2**32 for seed in self.seeds]

    def of_role(self, role: Role) -> tuple[Group, ...]:
        return tuple(group for group in self.groups if group.role == role)

    def keeps(self, group: str) -> bool:
        """Whether this is the name of a group of prompts to keep."""
        return any(group == kept.name for kept in self.of_role("retention"))

    def unasked(self, *groups: str) -> tuple[str, ...]:
        """Words for the concept that no prompt of these groups names, by default of any group."""
        texts = [
            prompt.text
            for group in self.of_role("efficacy")
            if not groups or group.name in groups
            for prompt in group.prompts
        ]
        every = self.concept.phrases
        return tuple(words for words in every if not any(names(text, [words]) for text in texts))


class Judgement(Record):
    """What a judge says of one picture."""

    labels: dict[str, str]
    """The likeliest label by attribute."""
    confidences: dict[str, float]
    """Its probability by attribute."""
    clip_score: float | None = None
    """How well the picture fits its prompt, 100 x cosine; ``None`` without a CLIP."""
    scores: dict[str, dict[str, float]] = {}
    """Probabilities of the likeliest labels by attribute, see ``RANKED``."""
    detections: dict[str, tuple[Detection, ...]] = {}
    """All that a detector found, by the detector's name; no threshold is applied."""

    def score(self, attribute: str, label: str) -> float | None:
        """The probability of a label; 0 for one that isn't among the likeliest."""
        known = self.scores.get(attribute)
        return None if known is None else known.get(label, 0.0)


RANKED = 5
"""Labels whose probabilities a judgement keeps; none above 1 / RANKED is left out."""


def ranked(probabilities: Tensor, labels: Sequence[str]) -> list[dict[str, float]]:
    """The likeliest labels of each row of ``[pictures, labels]`` with their probabilities."""
    best = probabilities.topk(min(RANKED, len(labels)), dim=-1)
    return [
        {labels[index]: value for value, index in zip(values, indices, strict=True)}
        for values, indices in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


def judgement(scores: Mapping[str, Mapping[str, float]], fit: float | None = None) -> Judgement:
    """A judgement from ranked probabilities by attribute, the likeliest label first in each."""
    first = {attribute: next(iter(known)) for attribute, known in scores.items()}
    return Judgement(
        labels=first,
        confidences={attribute: scores[attribute][label] for attribute, label in first.items()},
        clip_score=fit,
        scores={attribute: dict(known) for attribute, known in scores.items()},
    )


class Judge(Protocol):
    """Labels pictures; the same pictures always get the same judgements."""

    @property
    def name(self) -> str: ...

    @property
    def decision(self) -> str:
        """The rule from probabilities to a label, with its threshold, in words."""
        ...

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width that the model must draw by itself; ``None`` is any."""
        ...

    @property
    def sha256(self) -> str:
        """Of the files that decide a judgement."""
        ...

    def judge(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> list[Judgement]: ...

    def read(self, judgement: Judgement, prompt: Prompt) -> Judgement:
        """A stored judgement with the labels that this judge's rules give a picture of this."""
        ...

    def features(self, pictures: Sequence[Image.Image]) -> Tensor:
        """``[pictures, width]``, for distances."""
        ...


class Options(Record):
    """Options of a suite for any model: who judges, and which prompts are asked."""

    judge: str = ""
    """A detector's name, with its weights behind a colon; "" is the suite's own."""
    clip: str = ""
    """Folder or hub id of a CLIP that scores how pictures fit their prompts; "" is none."""
    protocols: tuple[str, ...] = ()
    """Published rules from detections to a verdict; the first decides, all are counted."""
    prompts: str = ""
    """File of prompts that ask for the concept."""
    captions: str = ""
    """File of prompts that show what is kept."""
    perceptual: str = ""
    """Network of a distance between each picture and the base's: ``efficientnet``, or LPIPS with
    ``alexnet:FILE``."""


NO_OPTIONS = Options()


@dataclass(frozen=True)
class Suite:
    """A family of plans and the judge for their pictures."""

    plan: Callable[..., Plan]
    """``plan(concept, *, erased, size, seeds, options)``; ``erased`` are all concepts."""
    judge: Callable[[Options, Sequence[Plan]], Judge]
    """One that can judge the pictures of these plans."""


SUITES: Registry[Suite] = Registry(
    "suite",
    {
        name: f"expunge.evaluation.suites.{name}:SUITE"
        for name in ("emoji", "pairs", "objects", "artists", "people", "unsafe", "coco")
    },
    entry_points="expunge.suites",
)


def refuse(suite: str, options: Options, *known: str) -> None:
    """Raise if an option is set that a suite has no use for."""
    given = {name for name, value in options.model_dump().items() if value} - {"perceptual"}
    if unused := sorted(given - set(known)):
        raise ExpungeError(f"the {suite} suite has no use for {', '.join(unused)}")
