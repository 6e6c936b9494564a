"""Any checkpoint against a policy: what will be asked and what that costs, then the answers."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

from expunge.concepts import Policy
from expunge.edits.edit import Edit
from expunge.errors import ExpungeError
from expunge.evaluation.drawing import check_size, images, requests
from expunge.evaluation.evaluate import Base, Question, measured, question
from expunge.evaluation.limits import check, verdicts
from expunge.evaluation.records import Report
from expunge.evaluation.suite import NO_OPTIONS, Options
from expunge.generation import ImageRequest, Manifest, Sampler
from expunge.generation.sampling import sample
from expunge.models import Model


class Outlook(NamedTuple):
    """What an audit will do, before it does it."""

    groups: tuple[tuple[str, str, int], ...]
    """Concept, group and number of pictures of each model."""
    models: int
    """Drawn with: one, or two where there is a base."""
    pictures: int
    """Of each model, those that several groups share counted once."""
    drawn: int
    """Of the audited model, by an earlier run."""
    seconds_a_picture: float


def audit(
    model: Model,
    policy: Policy,
    *,
    edit: Edit | None = None,
    base: Callable[[], Model] | None = None,
    suite: str = "emoji",
    size: str = "quick",
    seeds: Sequence[int] | None = None,
    sampler: Sampler | None = None,
    options: Options = NO_OPTIONS,
    folder: str | os.PathLike[str] | None = None,
) -> Report:
    """Measure what a model draws when asked for the policy's concepts, and all that must stay.

    Args:
        model: the checkpoint, erased by any program or not at all; unchanged afterwards.
        policy: what is to be gone, what is to stay, and the limits that decide.
        edit: applied to the model while it is measured; the model without it is then the base.
        base: gives another model to compare with, e.g. the one before erasing.
        suite: the prompts and the judge.
        size: how many prompts.
        seeds: replace the size's own seeds.
        sampler: how pictures are drawn; the default is the suite's.
        options: what the suite is told.
        folder: for pictures and results, by default ``runs/audit-<model's fingerprint>``.

    Raises:
        ExpungeError: the suite doesn't know a concept, the edit isn't for this model, a picture is
            missing, a judge fails, or a limit is about what wasn't measured.
    """
    if edit and base:
        raise ExpungeError("an edit is compared with the model that it is for; give no other base")
    if options.perceptual and not (edit or base):
        raise ExpungeError("--perceptual is a distance from the base's pictures; give a base too")
    asked = asking(policy, suite=suite, size=size, seeds=seeds, sampler=sampler, options=options)
    place = Path(folder or f"runs/audit-{model.fingerprint()[:12]}")
    beside = Base(base) if base else None
    found = measured(asked, model, place, edit=edit, base=beside)
    report = Report(evaluations=found, verdicts=verdicts(policy.limits, found))
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
    """The question about a policy: what it keeps for all of its concepts, each concept keeps.

    Raises:
        ExpungeError: what ``question`` refuses, or a limit is about what the suite doesn't ask.
    """
    concepts = tuple(
        one.model_copy(update={"keep": tuple(dict.fromkeys((*one.keep, *policy.keep)))})
        for one in policy.erase
    )
    if suite == "coco":
        concepts = concepts[:1]  # it asks the same for every concept
    asked = question(suite, concepts, size=size, seeds=seeds, sampler=sampler, options=options)
    check(policy.limits, asked.plans)
    return asked


def outlook(
    asked: Question, model: Model, place: Path, *, edit: Edit | None, compared: bool
) -> Outlook:
    """What measuring would take; one picture is drawn twice and thrown away to time it.

    Raises:
        ExpungeError: the edit isn't for this model, or the judge not for its pictures.
    """
    check_size(asked.judge, model, asked.plans[0].suite)
    wanted = requests(asked.shots)
    if edit:
        with edit.applied(model):
            drawn, seconds = _drawn(model, asked.sampler, place), _timed(model, asked, wanted[0])
    else:
        drawn, seconds = _drawn(model, asked.sampler, place), _timed(model, asked, wanted[0])
    return Outlook(
        groups=tuple(
            (plan.label, group.name, sum(shot.group == group.name for shot in plan.shots))
            for plan in asked.plans
            for group in plan.groups
        ),
        models=2 if compared else 1,
        pictures=len(wanted),
        drawn=len({request.case_number for request in wanted} & drawn),
        seconds_a_picture=seconds,
    )


def _drawn(model: Model, sampler: Sampler, place: Path) -> set[str]:
    folder = images(model, sampler, place)
    try:
        return {image.request.case_number for image in Manifest.load(folder).images}
    except ExpungeError:  # nothing is there, or a broken picture, which will be drawn again
        return set()


def _timed(model: Model, asked: Question, request: ImageRequest) -> float:
    """Seconds of a picture, when several are drawn as they would be."""
    few = [request.model_copy(update={"case_number": f"timed-{n}"}) for n in range(4)]
    start = perf_counter()
    list(sample(model, few, asked.sampler))
    return (perf_counter() - start) / len(few)
