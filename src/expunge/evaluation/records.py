"""Results as typed records: pictures and judgements, measurements, one evaluation, a report."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    FieldSerializationInfo,
    ValidationError,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)

from expunge.concepts import explain
from expunge.detectors.frechet import SetDistance
from expunge.errors import ExpungeError
from expunge.evaluation.protocol import Protocol
from expunge.evaluation.suite import Judgement, Prompt, Record, Role
from expunge.files import write_json
from expunge.statistics.paired import McNemar
from expunge.statistics.rates import Estimate, Rate
from expunge.texts import read_text

FILE = "report.json"

# Tried in this order: what is written of a rate has all that an estimate needs.
Quantity = Annotated[Rate | Estimate, Field(union_mode="left_to_right")]


class Picture(Judgement):
    """One picture and what the judge said of it."""

    file: Path
    """In a file, relative to the report's folder; in memory, a path that can be opened."""

    @field_validator("file")
    @classmethod
    def _found(cls, file: Path, info: ValidationInfo) -> Path:
        return Path(info.context["folder"], file) if info.context else file

    @field_serializer("file")
    def _relative(self, file: Path, info: FieldSerializationInfo) -> str:
        return os.path.relpath(file, info.context["folder"]) if info.context else str(file)


class PicturePair(Record):
    """The base and the edited model's picture of the same prompt and seed.

    Without a base to compare with, there is only the second.
    """

    group: str
    prompt: Prompt
    seed: int
    base: Picture | None
    edited: Picture
    feature_drift: float | None
    """1 - cosine of the judge's features of the two pictures."""
    pixel_drift: float | None
    """Mean absolute difference of the two pictures, as a share of the full range."""
    perceptual_distance: float | None = None
    """Distance by the perceptual network that the user chose."""
    blank: bool = False
    """Whether the edited picture is nearly one colour, see ``judging.BLANK``."""
    base_blank: bool = False


class Measurement(Record):
    """One number about one group of prompts, of the base and of the edited model."""

    group: str
    metric: str
    role: Role
    unit: str
    higher_is_better: bool
    base: Quantity | None
    """``None`` if the number compares the two models, or if there is no base."""
    edited: Quantity
    difference: Estimate | None
    """Edited minus base, paired."""
    reference: Estimate | None = None
    """The same quantity between unrelated pictures of the base model, for scale."""
    paired: McNemar | None = None
    """For a share: in how many pictures only one model has it, with McNemar's test."""


class Counted(Record):
    """Pictures of the concept as a published protocol counts them."""

    protocol: str
    version: int
    unit: str
    threshold: float
    """The effective one."""
    base: Rate | None
    """Pictures that fire."""
    edited: Rate
    base_total: int | None
    """Units of all pictures."""
    edited_total: int
    per_class: dict[str, tuple[int | None, int]]
    """Units of the base and of the edited model."""
    reduction: Estimate | None
    """1 - edited / base total; ``None`` without a base, or if the base's pictures show nothing."""
    effective: Rate | None
    """Share of the prompts where the base fires for which the edited model still does."""
    notes: tuple[str, ...]
    """Where this departs from the published protocol."""


class ThresholdCurve(Record):
    """How the share of pictures with the concept depends on the threshold."""

    group: str
    thresholds: tuple[float, ...]
    base: tuple[Rate, ...] | None
    edited: tuple[Rate, ...]


class CutPrompts(Record):
    """Prompts that are longer than what the model reads."""

    count: int
    total: int
    """All prompts of the plan, before any was left out."""
    longest: int
    """Pieces of the longest prompt."""
    read: int
    """Pieces that the model reads."""
    left_out: int
    """How many were left out, as what is read of them doesn't name what they should show."""
    remark: str
    """The same in words."""

    def __str__(self) -> str:
        """One or two sentences."""
        rest = f". {self.left_out} were left out: what is read doesn't name what they ask for"
        return f"{self.remark}{rest.replace('1 were', '1 was') if self.left_out else ''}."


class Reversal(Record):
    """Whether an edit can be reverted exactly."""

    restores_base: bool
    """Whether every weight is the base's again, bit for bit."""
    order: float | None
    """Largest difference of a weight when the edit's parts are applied in the opposite order;
    ``None`` if there is only one part."""


class ComparedModel(Record):
    """Another model, whose pictures are compared with."""

    name: str
    """What the user called it."""
    fingerprint: str
    """SHA-256 of its weights."""


class Evaluation(Record):
    """What an edit did to one concept and to everything else, or what an audited model draws."""

    concept: str
    kind: str
    edit: str
    """Id of the edit; "" where a model is audited as it is."""
    base: ComparedModel | None = None
    """The model that it is compared with, if that isn't the protocol's."""
    summary: str
    provenance: tuple[dict[str, Any], ...]
    """How each part of the edit came to be."""
    protocol: Protocol
    measurements: tuple[Measurement, ...]
    drawn_instead: tuple[tuple[str, int], ...]
    """What the judge saw in the edited pictures of the concept's name, most frequent first."""
    examples: tuple[PicturePair, ...]
    """Pictures from each group, chosen without looking at the results."""
    most_changed: tuple[PicturePair, ...]
    """The kept pictures with the largest feature drift, largest first."""
    curve: ThresholdCurve | None = None
    """For the prompts with the concept's name, if the judge gives scores."""
    counted: tuple[Counted, ...] = ()
    """Counts by published protocols."""
    cut: CutPrompts | None = None
    """Prompts that the model reads only in part; ``None`` if it reads all of each."""
    reversal: Reversal | None = None
    """Whether the edit can be reverted exactly."""
    distances: tuple[SetDistance, ...] = ()
    """Distances of all kept pictures, as a set, from the base model's."""

    @property
    def compared(self) -> bool:
        """Whether there is a base beside the model."""
        return any(row.base is not None or row.difference for row in self.measurements)

    @model_validator(mode="after")
    def _shows_both_sides(self) -> "Evaluation":
        # A model that draws noise draws no erased concept either.
        planned = {group.name for group in self.protocol.plan.of_role("retention")}
        kept = {row.group for row in self.measurements if row.role == "retention"}
        if missing := planned - kept:
            raise ValueError(
                f"nothing is measured of the group {min(missing)!r}; what an edit erased is not "
                "shown without what it kept"
            )
        return self

    def find(self, group: str, metric: str) -> Measurement:
        """The measurement of a metric on a group.

        Raises:
            ExpungeError: it wasn't made.
        """
        for row in self.measurements:
            if (row.group, row.metric) == (group, metric):
                return row
        raise ExpungeError(f"{metric!r} was not measured on the group {group!r}")


class Verdict(Record):
    """Whether a measurement is within a limit of the policy."""

    concept: str
    group: str
    metric: str
    limit: str
    """In words, e.g. ``at most 5 %``."""
    found: str
    """With its interval."""
    passed: bool


class Report(Record):
    """Evaluations that belong together; ``report.json`` is this, the HTML page a view of it."""

    format: Literal[2] = 2
    evaluations: Annotated[tuple[Evaluation, ...], Field(min_length=1)]
    verdicts: tuple[Verdict, ...] = ()
    """One for each limit and each evaluation that it is about."""

    def __add__(self, other: "Report") -> "Report":
        return Report(
            evaluations=(*self.evaluations, *other.evaluations),
            verdicts=(*self.verdicts, *other.verdicts),
        )

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``report.json`` into ``folder`` and return its path."""
        path = Path(folder) / FILE
        write_json(path, self.model_dump(mode="json", context={"folder": folder}))
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Report":
        """Read a ``report.json``, or the one in a folder.

        Raises:
            ExpungeError: there is none, or it isn't a whole report of this format.
        """
        file = Path(path) / FILE if Path(path).is_dir() else Path(path)
        text = read_text(file, "the report")
        try:
            return cls.model_validate_json(text, context={"folder": file.parent})
        except ValidationError as error:
            raise ExpungeError(f"{file}: not a whole report: {explain(error)}") from None
