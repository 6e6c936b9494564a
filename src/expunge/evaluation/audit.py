"""Audit any checkpoint against a policy: say what will be drawn and how long it takes; measure."""

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

from expunge.concepts import Policy
from expunge.edits.edit import Edit
from expunge.errors import ExpungeError
from expunge.evaluation.base import Base
from expunge.evaluation.drawing import check_size, images, requests
from expunge.evaluation.evaluate import Question, measured, question, suite_for
from expunge.evaluation.limits import check, verdicts
from expunge.evaluation.records import Report
from expunge.evaluation.suite import NO_OPTIONS, Options
from expunge.generation import ImageRequest, Manifest, Sampler
from expunge.generation.sampling import sample
from expunge.models import Model
from expunge.spelling import distinct


class Outlook(NamedTuple):
    """What an audit will draw, and how long that takes."""

    groups: tuple[tuple[str, str, int], ...]
    """Concept, group and number of pictures of each model."""
    models: int
    """How many models draw: one, or two if there is a base."""
    pictures: int
    """For each model; pictures that several groups share count once."""
    drawn: int
    """How many of the audited model's pictures an earlier run has drawn."""
    seconds_a_picture: float
    remarks: tuple[str, ...]
    """What to know of the prompts before they are drawn."""


def audit(
    model: Model,
    policy: Policy,
    *,
    edit: Edit | None = None,
    base: Callable[[], Model] | None = None,
    suite: str | None = None,
    size: str = "quick",
    seeds: Sequence[int] | None = None,
    sampler: Sampler | None = None,
    options: Options = NO_OPTIONS,
    folder: str | os.PathLike[str] | None = None,
    fingerprint: str | None = None,
) -> Report:
    """Measure what a model draws when asked for the policy's concepts and for what must stay.

    Args:
        model: the checkpoint. It doesn't matter who erased what from it. It is unchanged
            afterwards.
        policy: what should be gone, what should stay, and the limits to meet.
        edit: applied to the model while it is measured; the model without it is then the base.
        base: loads another model to compare with, e.g. the one before erasing.
        suite: the prompts and the judge; may be left out for the bundled model, which has its own.
        size: how many prompts.
        seeds: replace the size's own seeds.
        sampler: how pictures are drawn; by default, and where it has gaps, as the model usually is.
        options: the suite's judge, lists of prompts and so on.
        folder: for pictures and results, by default ``runs/audit-<model's fingerprint>``.
        fingerprint: the model's, if it is known; computing it reads all weights.

    Raises:
        ExpungeError: the suite doesn't know a concept, the edit isn't for this model, a picture is
            missing, a judge fails, or a limit is about something that wasn't measured.
    """
    _check_one_base(edit, base)
    if options.perceptual and not (edit or base):
        raise ExpungeError("--perceptual is a distance from the base's pictures; give a base too")
    asked = asking(
        policy,
        suite=suite_for(model, suite),
        size=size,
        seeds=seeds,
        sampler=sampler,
        options=options,
    )
    known = fingerprint or model.fingerprint()
    place = Path(folder or f"runs/audit-{known[:12]}")
    beside = Base(base) if base else None
    found = measured(asked, model, place, edit=edit, base=beside, fingerprint=known)
    report = Report(evaluations=found)
    report.save(place)  # a limit may turn out to be about a metric that nothing gave
    report = report.model_copy(update={"verdicts": verdicts(policy.limits, found)})
    report.save(place)
    return report


def asking(
    policy: Policy,
    *,
    suite: str,
    size: str,
    seeds: Sequence[int] | None,
    sampler: Sampler | None,
    options: Options,
) -> Question:
    """The question about a policy. What it keeps for all concepts is added to each concept.

    Raises:
        ExpungeError: ``question`` refuses it, or a limit is about something that the suite doesn't
            measure.
    """
    concepts = tuple(
        one.model_copy(update={"keep": distinct((*one.keep, *policy.keep))}) for one in policy.erase
    )
    if suite == "coco":
        concepts = concepts[:1]  # it asks the same for every concept
    asked = question(suite, concepts, size=size, seeds=seeds, sampler=sampler, options=options)
    check(policy.limits, asked.plans)
    return asked


def outlook(
    asked: Question,
    model: Model,
    place: Path,
    *,
    edit: Edit | None = None,
    base: Callable[[], Model] | None = None,
    fingerprint: str | None = None,
) -> Outlook:
    """What measuring would take. To time it, a few pictures are drawn and thrown away.

    Raises:
        ExpungeError: the edit isn't for this model, the judge not for its pictures, or the base
            can't be compared with it.
    """
    _check_one_base(edit, base)
    model.check_draws()
    check_size(asked.judge, model, asked.plans[0].suite)
    others = [Base(base).loaded(model, asked.sampler)] if base else []
    asked, cuts = asked.as_read_by(model, *others)
    wanted, known = requests(asked.shots), fingerprint or model.fingerprint()
    with edit.applied(model) if edit else nullcontext():
        folder = images(model, asked.sampler, place, fingerprint=known)
        drawn, seconds = _drawn(folder), _timed(model, asked, wanted[0])
    return Outlook(
        groups=tuple(
            (plan.label, group.name, sum(shot.group == group.name for shot in plan.shots))
            for plan in asked.plans
            for group in plan.groups
        ),
        models=2 if edit or base else 1,
        pictures=len(wanted),
        drawn=len({request.case_number for request in wanted} & drawn),
        seconds_a_picture=seconds,
        remarks=tuple(dict.fromkeys(str(cut) for cut in cuts if cut)),
    )


def _check_one_base(edit: Edit | None, base: Callable[[], Model] | None) -> None:
    if edit and base:
        raise ExpungeError("an edit is compared with the model that it is for; give no other base")


def _drawn(folder: Path) -> set[str]:
    try:
        return {image.request.case_number for image in Manifest.load(folder).images}
    except ExpungeError:  # nothing is there, or a broken picture, which will be drawn again
        return set()


def _timed(model: Model, asked: Question, request: ImageRequest) -> float:
    """Seconds per picture, from drawing a few."""
    few = [request.model_copy(update={"case_number": f"timed-{n}"}) for n in range(4)]
    start = perf_counter()
    list(sample(model, few, asked.sampler))
    return (perf_counter() - start) / len(few)
