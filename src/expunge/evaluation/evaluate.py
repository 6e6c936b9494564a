"""Draw with a model and its base on the same seeds, judge, measure, record."""

import os
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from expunge.concepts import Concept
from expunge.detectors.perceptual import PerceptualDistance, perceptual
from expunge.edits.applied import check_unedited
from expunge.edits.edit import Edit
from expunge.errors import ExpungeError
from expunge.evaluation.base import Base
from expunge.evaluation.counting import counted
from expunge.evaluation.distances import distances, unrelated
from expunge.evaluation.drawing import check_size, draw
from expunge.evaluation.judging import (
    Files,
    Judged,
    Judgements,
    compare,
)
from expunge.evaluation.protocol import Protocol
from expunge.evaluation.records import CutPrompts, Evaluation, PicturePair, Report
from expunge.evaluation.reversal import reversal
from expunge.evaluation.scoring import (
    curve,
    drawn_instead,
    examples,
    measure,
    most_changed,
)
from expunge.evaluation.suite import NO_OPTIONS, SUITES, Judge, Options, Plan, Shot, Suite
from expunge.evaluation.window import as_read
from expunge.files import file_name, write_text
from expunge.generation import Sampler
from expunge.models import Model
from expunge.spelling import spelling
from expunge.versions import versions

BUNDLED = "emoji"
"""The bundled model's own suite."""
BUNDLED_ALONE = (BUNDLED, "pairs")
"""Suites that measure the bundled model and no other."""
LPIPS_SIDE = 64
"""Pixels of a side at which ESD and RECE print LPIPS."""


@dataclass(frozen=True)
class Question:
    """What models are asked: the prompts, the judge and the sampler."""

    plans: tuple[Plan, ...]
    judge: Judge
    sampler: Sampler = field(default_factory=Sampler)
    """Its gaps are filled in by the model that is asked."""
    distance: PerceptualDistance | None = None
    """Of each picture from the base model's."""

    @cached_property
    def shots(self) -> tuple[Shot, ...]:
        return tuple(shot for plan in self.plans for shot in plan.shots)

    def as_read_by(
        self, model: Model, *others: Model
    ) -> tuple["Question", tuple[CutPrompts | None, ...]]:
        """Without prompts that ask one of these models for nothing, and what is cut of each plan's.

        The sampler's gaps are filled in by the first one.
        """
        plans, cuts = zip(*(as_read(plan, model, *others) for plan in self.plans), strict=True)
        return replace(self, plans=plans, sampler=Sampler.of(model, self.sampler)), cuts


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
        ExpungeError: the suite doesn't know a concept, an option or the size, or the judge can't
            be loaded.
    """
    chosen = SUITES.get(suite) if isinstance(suite, str) else suite
    plans = tuple(
        chosen.plan(concept, erased=concepts, size=size, seeds=seeds, options=options)
        for concept in concepts
    )
    distance = perceptual(options.perceptual, size=LPIPS_SIDE) if options.perceptual else None
    return Question(plans, chosen.judge(options, plans), sampler or Sampler(), distance)


def suite_for(model: Model, suite: str | None) -> str:
    """The suite that is named, or the bundled model's own for the bundled model.

    Raises:
        ExpungeError: none is named for another model, or the model can't be drawn with.
    """
    model.check_draws()
    if suite:
        return suite
    if not model.bundled:
        others = ", ".join(name for name in SUITES if name not in BUNDLED_ALONE)
        own = " and ".join(map(repr, BUNDLED_ALONE))
        raise ExpungeError(
            f"say which suite measures {model.name!r}: {others} ({own} are for the bundled "
            "model alone)"
        )
    return BUNDLED


def evaluate(
    model: Model,
    edit: Edit,
    *,
    suite: str | None = None,
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
        suite: the prompts and the judge; may be left out for the bundled model, which has its own.
        size: how many prompts, e.g. ``quick`` or ``full``.
        seeds: replace the size's own seeds.
        sampler: how pictures are drawn; by default, and where it has gaps, as the model usually is.
        options: the suite's judge, lists of prompts and so on.
        folder: for pictures and results, by default ``runs/evaluate-<edit id>``.

    Raises:
        ExpungeError: the suite doesn't know a concept, the edit isn't for this model, a picture
            is missing or a judge fails.
    """
    asked = question(
        suite_for(model, suite),
        edit.concepts,
        size=size,
        seeds=seeds,
        sampler=sampler,
        options=options,
    )
    place = Path(folder or f"runs/evaluate-{edit.id}")
    report = Report(evaluations=measured(asked, model, place, edit=edit))
    report.save(place)
    return report


def measured(
    asked: Question,
    model: Model,
    place: Path,
    *,
    edit: Edit | None = None,
    base: Base | None = None,
    fingerprint: str | None = None,
) -> tuple[Evaluation, ...]:
    """An evaluation of each plan; several models can be measured into one folder.

    Args:
        asked: what is asked.
        model: what is measured, without any edit applied.
        place: for pictures, judgements and pairs.
        edit: applied to the model while it is measured; the model without it is the base.
        base: the model to compare with, if it is another one.
        fingerprint: the model's, if it is known; computing it reads all weights.

    Raises:
        ExpungeError: the edit isn't for this model, a picture is missing or a judge fails.
    """
    check_unedited(model, "the base is measured too")
    model.check_draws()
    check_size(asked.judge, model, asked.plans[0].suite)
    asked, cuts = asked.as_read_by(model, *([base.loaded(model, asked.sampler)] if base else []))
    judgements = Judgements(asked.judge, place)
    fingerprint = fingerprint or model.fingerprint()
    before, after = _drawn(asked, model, fingerprint, judgements, place, edit, base)
    taken_out = reversal(model, edit) if edit else None
    found = []
    for plan, cut in zip(asked.plans, cuts, strict=True):
        judged_before = judgements.judged(plan.shots, before) if before else None
        judged_after = judgements.judged(plan.shots, after)
        pairs = compare(plan.shots, judged_before, judged_after, asked.distance)
        name = f"{edit.id if edit else after.folder.name}-{_words(plan, asked.plans)}"
        _write_lines(place / f"pairs-{name}.jsonl", pairs)
        found.append(
            Evaluation(
                concept=spelling(plan.concept.target),
                kind=plan.concept.kind,
                edit=edit.id if edit else "",
                base=base.source if base else None,
                summary=edit.summary() if edit else f"{model.name}, as it is",
                provenance=tuple(
                    part.model_dump(mode="json") for part in (edit.provenance if edit else ())
                ),
                protocol=_protocol(model, fingerprint, plan, asked),
                cut=cut,
                reversal=taken_out,
                **_scored(asked, plan, pairs, judged_before, judged_after),
            )
        )
    judgements.settle()
    return tuple(found)


def _drawn(
    asked: Question,
    model: Model,
    fingerprint: str,
    judgements: Judgements,
    place: Path,
    edit: Edit | None,
    base: Base | None,
) -> tuple[Files | None, Files]:
    """The pictures of the base, if there is one, and of the model; each is judged once drawn."""
    before = None
    with judgements.beside_drawing() as watch:
        if base and base.model and base.source:
            known = base.source.fingerprint
            before = draw(base.model, asked.shots, asked.sampler, place, watch, fingerprint=known)
            base.model = None
        applied: AbstractContextManager[Any] = edit.applied(model) if edit else nullcontext()
        with applied:  # first, as an edit of another base is refused here
            after = draw(model, asked.shots, asked.sampler, place, watch, fingerprint=fingerprint)
        if edit:
            before = draw(model, asked.shots, asked.sampler, place, watch, fingerprint=fingerprint)
    return before, after


def _scored(
    asked: Question, plan: Plan, pairs: Sequence[PicturePair], before: Judged | None, after: Judged
) -> dict[str, Any]:
    """The fields of an ``Evaluation`` that are computed from judged pictures."""
    name = asked.distance.name if asked.distance else ""
    return {
        "measurements": measure(plan, pairs, unrelated(plan, before) if before else None, name),
        "drawn_instead": drawn_instead(plan, pairs),
        "examples": examples(plan, pairs),
        "most_changed": most_changed(plan, pairs),
        "curve": curve(plan, pairs),
        "counted": counted(asked.judge, plan, pairs),
        "distances": distances(asked.judge, plan, before, after),
    }


def _words(plan: Plan, plans: Sequence[Plan]) -> str:
    """The judge's name for the concept, or the concept's own if several share the judge's name."""
    shared = sum(other.label == plan.label for other in plans) > 1
    return file_name(spelling(plan.concept.target) if shared else plan.label)


def _protocol(model: Model, fingerprint: str, plan: Plan, asked: Question) -> Protocol:
    return Protocol(
        plan=plan,
        model=model.name,
        fingerprint=fingerprint,
        sampler=asked.sampler.record(model),
        image_size=model.image_size,
        device=model.device.type,
        dtype=str(model.dtype).removeprefix("torch."),
        judge=asked.judge.name,
        judge_sha256=asked.judge.sha256,
        decision=asked.judge.decision,
        versions=versions(),
    )


def _write_lines(path: Path, pairs: Iterable[PicturePair]) -> None:
    context = {"folder": path.parent}
    write_text(path, "".join(f"{pair.model_dump_json(context=context)}\n" for pair in pairs))
