"""Draw with a model and its base on the same seeds, judge, measure, record."""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from expunge.concepts import Concept
from expunge.detectors.base import Identity
from expunge.detectors.frechet import FEW, Reference, SetDistance, frechet, kid
from expunge.detectors.packaged import Pixels
from expunge.detectors.perceptual import PerceptualDistance, perceptual
from expunge.edits.applied import Applied, check_unedited
from expunge.edits.edit import Edit
from expunge.errors import ExpungeError
from expunge.evaluation.counting import counted
from expunge.evaluation.judging import (
    Files,
    Judged,
    Judgements,
    Watch,
    compare,
    feature_drift,
    levels,
    pixel_drift,
)
from expunge.evaluation.panel import Panel
from expunge.evaluation.protocol import Protocol
from expunge.evaluation.records import Evaluation, PicturePair, Report, Source
from expunge.evaluation.reversal import reversal
from expunge.evaluation.scoring import (
    Unrelated,
    curve,
    drawn_instead,
    examples,
    measure,
    most_changed,
)
from expunge.evaluation.suite import NO_OPTIONS, SUITES, Judge, Options, Plan, Shot, Suite
from expunge.files import digest, write_text
from expunge.generation import ImageRecord, ImageRequest, Sampler, generate
from expunge.models import Model
from expunge.statistics.rates import mean
from expunge.versions import versions

LPIPS_SIDE = 64
"""Pixels of a side at which ESD and RECE print LPIPS."""
TO_BASE: Reference = "the base model's pictures"


@dataclass(frozen=True)
class Question:
    """What is asked of models: the prompts, the judge and the sampler, before a picture is made."""

    plans: tuple[Plan, ...]
    judge: Judge
    sampler: Sampler
    distance: PerceptualDistance | None = None
    """Of each picture from the base model's."""

    @property
    def shots(self) -> list[Shot]:
        return [shot for plan in self.plans for shot in plan.shots()]


def question(
    suite: str | Suite,
    concepts: Sequence[Concept],
    *,
    size: str = "quick",
    seeds: Sequence[int] | None = None,
    sampler: Sampler | None = None,
    options: Options = NO_OPTIONS,
) -> Question:
    """What a suite asks about concepts.

    Raises:
        ExpungeError: the suite doesn't know a concept, or an option or a size; a judge isn't there.
    """
    chosen = SUITES.get(suite) if isinstance(suite, str) else suite
    plans = tuple(
        chosen.plan(concept, erased=concepts, size=size, seeds=seeds, options=options)
        for concept in concepts
    )
    distance = perceptual(options.perceptual, size=LPIPS_SIDE) if options.perceptual else None
    return Question(plans, chosen.judge(options, plans), sampler or chosen.sampler, distance)


def usual_sampler(suite: str) -> Sampler:
    """How pictures are drawn for a suite where nobody says otherwise."""
    return SUITES.get(suite).sampler


def evaluate(
    model: Model,
    edit: Edit,
    *,
    suite: str = "emoji",
    size: str = "quick",
    seeds: Sequence[int] | None = None,
    sampler: Sampler | None = None,
    options: Options = NO_OPTIONS,
    folder: str | os.PathLike[str] | None = None,
) -> Report:
    """Measure what ``edit`` erased from ``model`` and what it kept.

    Pictures are kept in ``folder`` and never drawn twice: a stopped evaluation continues, other
    edits reuse the base model's pictures, and a new judge needs no new picture. Beside them lie
    what judges said of each picture (``judgements/``), the pairs of pictures of each concept
    (``pairs-*.jsonl``) and ``report.json``.

    Args:
        model: the base model, without any edit applied; it is unchanged afterwards.
        edit: what to measure; each of its concepts gets its own evaluation.
        suite: the prompts and the judge.
        size: how many prompts, e.g. ``quick`` or ``full``.
        seeds: replace the size's own seeds.
        sampler: how pictures are drawn; the default is the suite's.
        options: what the suite is told.
        folder: for pictures and results, by default ``runs/evaluate-<edit id>``.

    Raises:
        ExpungeError: the suite doesn't know a concept, the edit isn't for this model, a picture
            is missing or a judge fails.
    """
    asked = question(suite, edit.concepts, size=size, seeds=seeds, sampler=sampler, options=options)
    place = Path(folder or f"runs/evaluate-{edit.id}")
    report = Report(evaluations=measured(asked, model, place, edit=edit))
    report.save(place)
    return report


@dataclass
class Base:
    """The model to compare with."""

    load: Callable[[], Model]
    """Called once, and the model let go after its pictures are drawn."""
    source: Source | None = field(default=None, init=False)


def measured(
    asked: Question,
    model: Model,
    place: Path,
    *,
    edit: Edit | None = None,
    base: Base | None = None,
) -> tuple[Evaluation, ...]:
    """An evaluation of each plan; several models can be measured into one folder.

    Args:
        asked: what is asked.
        model: what is measured, without any edit applied.
        place: for pictures, judgements and pairs.
        edit: applied to the model while it is measured; the model without it is the base.
        base: the model to compare with, where that is another one.

    Raises:
        ExpungeError: the edit isn't for this model, a picture is missing or a judge fails.
    """
    check_unedited(model, "the base is measured too")
    check_size(asked.judge, model, asked.plans[0].suite)
    judgements = Judgements(asked.judge, place)
    before = None
    with judgements.beside_drawing() as watch:
        if base:
            other = base.load()
            if other.image_size != model.image_size:
                raise ExpungeError(
                    f"{other.name!r} draws {other.image_size[0]}×{other.image_size[1]} pictures, "
                    f"{model.name!r} {model.image_size[0]}×{model.image_size[1]}; they can't be "
                    "compared one by one"
                )
            base.source = Source(name=other.name, fingerprint=other.fingerprint())
            before = draw(other, asked.shots, asked.sampler, place, watch)
            del other
        applied: AbstractContextManager[Any] = edit.applied(model) if edit else nullcontext()
        with applied:  # first, as an edit of another base is refused here
            after = draw(model, asked.shots, asked.sampler, place, watch)
        if edit:
            before = draw(model, asked.shots, asked.sampler, place, watch)
    taken_out = reversal(model, edit) if edit else None
    found = []
    for plan in asked.plans:
        shots = plan.shots()
        judged_before = judgements.judged(shots, before) if before else None
        judged_after = judgements.judged(shots, after)
        pairs = compare(shots, judged_before, judged_after, asked.distance)
        name = f"{edit.id if edit else after.folder.name}-{_words(plan, asked.plans)}"
        _write_lines(place / f"pairs-{name}.jsonl", pairs)
        unrelated = _unrelated(plan, judged_before) if judged_before else None
        found.append(
            Evaluation(
                concept=plan.concept.target.lower(),
                kind=plan.concept.kind,
                edit=edit.id if edit else "",
                base=base.source if base else None,
                summary=edit.summary() if edit else f"{model.name}, as it is",
                provenance=tuple(
                    part.model_dump(mode="json") for part in (edit.provenance if edit else ())
                ),
                protocol=_protocol(model, plan, asked.sampler, asked.judge),
                measurements=measure(
                    plan, pairs, unrelated, asked.distance.name if asked.distance else ""
                ),
                drawn_instead=drawn_instead(plan, pairs),
                examples=examples(plan, pairs),
                most_changed=most_changed(plan, pairs),
                curve=curve(plan, pairs),
                counted=counted(asked.judge, plan, pairs),
                reversal=taken_out,
                distances=_distances(asked.judge, plan, judged_before, judged_after),
            )
        )
    return tuple(found)


def _words(plan: Plan, plans: Sequence[Plan]) -> str:
    """What the judge calls the concept, or its own name where several are called the same."""
    shared = sum(other.label == plan.label for other in plans) > 1
    return re.sub(r"[^\w.-]+", "-", plan.concept.target.lower() if shared else plan.label)


def check_size(judge: Judge, model: Model, suite: str) -> None:
    """Raise where a judge looks at pictures of another size than the model draws."""
    if judge.size and judge.size != model.image_size:
        raise ExpungeError(
            f"the {suite} suite judges {judge.size[0]}×{judge.size[1]} pictures, and "
            f"{model.name!r} draws {model.image_size[0]}×{model.image_size[1]}; choose "
            "another suite"
        )


def draw(
    model: Model,
    shots: Iterable[Shot],
    sampler: Sampler,
    place: Path,
    watch: Watch | None = None,
) -> Files:
    """Draw every shot that isn't drawn yet; their files by number.

    The name of the folder says which model drew them.
    """
    folder = images(model, sampler, place)

    def seen(record: ImageRecord) -> None:
        if watch:
            watch(record, folder)

    manifest = generate(model, requests(shots), folder, sampler, seen=seen)
    return Files(folder, {image.request.case_number: image for image in manifest.images})


def images(model: Model, sampler: Sampler, place: Path) -> Path:
    """The folder of a model's pictures."""
    parts = [part.id for part in Applied.to(model).components]
    key = digest([model.fingerprint(), parts, sampler.model_dump(mode="json")])[:12]
    return place / "images" / f"{'edited' if parts else 'base'}-{key}"


def requests(shots: Iterable[Shot]) -> list[ImageRequest]:
    """One for each different shot.

    Raises:
        ExpungeError: one prompt and seed are asked for with two guidance scales or sizes.
    """
    wanted: dict[str, ImageRequest] = {}
    for shot in shots:
        request = ImageRequest(
            case_number=shot.number,
            prompt=shot.prompt.text,
            seed=shot.seed,
            guidance_scale=shot.prompt.guidance_scale,
            height=shot.prompt.height,
            width=shot.prompt.width,
        )
        if wanted.setdefault(shot.number, request) != request:
            raise ExpungeError(
                f"{shot.prompt.text!r} with seed {shot.seed} is asked for twice, with different "
                "guidance or size; keep one of the rows"
            )
    return list(wanted.values())


def _protocol(model: Model, plan: Plan, sampler: Sampler, judge: Judge) -> Protocol:
    return Protocol(
        plan=plan,
        model=model.name,
        fingerprint=model.fingerprint(),
        sampler=sampler.model_dump(mode="json"),
        image_size=model.image_size,
        device=model.device.type,
        dtype=str(model.dtype).removeprefix("torch."),
        judge=judge.name,
        judge_sha256=judge.sha256,
        decision=judge.decision,
        versions=versions(),
    )


def _kept(plan: Plan) -> list[int]:
    return [index for index, shot in enumerate(plan.shots()) if plan.keeps(shot.group)]


def _unrelated(plan: Plan, base: Judged) -> Unrelated:
    """Drift between each kept base picture and the one half the list away."""
    kept = _kept(plan)
    other = np.roll(kept, len(kept) // 2)
    files = [picture.file for picture in base.pictures]
    return Unrelated(
        mean(feature_drift(base.features[kept], base.features[other])),
        mean(
            [
                pixel_drift(*_of_one_size(levels(files[one]), levels(files[two])))
                for one, two in zip(kept, other, strict=True)
            ]
        ),
    )


def _of_one_size(one: Pixels, other: Pixels) -> tuple[Pixels, Pixels]:
    """Rows of a list may ask for pictures of different sizes; the second is shrunk or grown."""
    height, width = one.shape[:2]
    return one, np.asarray(Image.fromarray(other).resize((width, height)))


def _distances(
    judge: Judge, plan: Plan, base: Judged | None, after: Judged
) -> tuple[SetDistance, ...]:
    """Of kept pictures to the base's, as far as there are enough of them."""
    kept = _kept(plan)
    if base is None or len(kept) < FEW:
        return ()
    network = judge.extractor.identity if isinstance(judge, Panel) else _identity(judge)
    rows, reference = after.features[kept], base.features[kept]
    found = [kid(rows, reference, network=network, to=TO_BASE)]
    if len(kept) > rows.shape[1]:
        found.append(frechet(rows, reference, network=network, to=TO_BASE))
    return tuple(found)


def _identity(judge: Judge) -> Identity:
    return Identity(name=judge.name, version="", sha256=judge.sha256)


def _write_lines(path: Path, pairs: Iterable[PicturePair]) -> None:
    context = {"folder": path.parent}
    write_text(path, "".join(f"{pair.model_dump_json(context=context)}\n" for pair in pairs))
