"""Draw with the base and the edited model on the same seeds, judge, measure, record."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from expunge.edits.edit import Edit
from expunge.errors import ExpungeError
from expunge.evaluation.judging import Judged, compare, feature_drift, judge_all, pixel_drift
from expunge.evaluation.protocol import Protocol
from expunge.evaluation.records import Evaluation, Pair, Report
from expunge.evaluation.scoring import Unrelated, drawn_instead, examples, measure, most_changed
from expunge.evaluation.suite import SUITES, Judge, Plan, Shot
from expunge.files import digest, write_text
from expunge.generation import ImageRequest, Sampler, generate
from expunge.methods import versions
from expunge.metrics.rates import mean
from expunge.models import Model


def evaluate(
    model: Model,
    edit: Edit,
    *,
    suite: str = "emoji",
    size: str = "quick",
    seeds: Sequence[int] | None = None,
    sampler: Sampler | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> Report:
    """Measure what ``edit`` erased from ``model`` and what it kept.

    Pictures are kept in ``folder`` and never drawn twice: a stopped evaluation continues, other
    edits reuse the base model's pictures, and a new judge needs no new picture. Beside them lie
    the judgements of every picture (``judgements-*.jsonl``) and ``report.json``.

    Args:
        model: the base model, without any edit applied; it is unchanged afterwards.
        edit: what to measure; each of its concepts gets its own evaluation.
        suite: the prompts and the judge.
        size: how many prompts, ``quick`` or ``full``.
        seeds: replace the size's own seeds.
        sampler: how pictures are drawn; the default suits the bundled model.
        folder: for pictures and results, by default ``runs/evaluate-<edit id>``.

    Raises:
        ExpungeError: the suite doesn't know a concept, the edit isn't for this model, a picture
            is missing or a judge fails.
    """
    if model.components:
        raise ExpungeError("the model has an edit applied; revert it, the base is measured too")
    chosen, place = SUITES.get(suite), Path(folder or f"runs/evaluate-{edit.id}")
    plans = [
        chosen.plan(concept, erased=edit.concepts, size=size, seeds=seeds)
        for concept in edit.concepts
    ]
    judge, sampler = chosen.judge(), sampler or Sampler()
    if judge.size and judge.size != model.image_size:
        raise ExpungeError(
            f"the {suite} suite judges {judge.size[0]}×{judge.size[1]} pictures, and "
            f"{model.name!r} draws {model.image_size[0]}×{model.image_size[1]}; choose "
            "another suite"
        )
    shots = [shot for plan in plans for shot in plan.shots()]
    base = draw(model, shots, sampler, place)
    with edit.applied(model):
        edited = draw(model, shots, sampler, place)
    evaluations = []
    for plan in plans:
        before, after = (judge_all(judge, plan.shots(), files) for files in (base, edited))
        pairs = compare(plan.shots(), before, after)
        _write_lines(place / f"judgements-{edit.id}-{plan.label.replace(' ', '-')}.jsonl", pairs)
        measurements = measure(plan, pairs, _unrelated(plan, before))
        evaluations.append(
            Evaluation(
                concept=plan.label,
                kind=plan.concept.kind,
                edit=edit.id,
                summary=edit.summary(),
                provenance=tuple(part.model_dump(mode="json") for part in edit.provenance),
                protocol=_protocol(model, plan, sampler, judge),
                measurements=measurements,
                drawn_instead=drawn_instead(plan, pairs),
                examples=examples(plan, pairs),
                most_changed=most_changed(plan, pairs),
            )
        )
    report = Report(evaluations=tuple(evaluations))
    report.save(place)
    return report


def draw(model: Model, shots: Iterable[Shot], sampler: Sampler, place: Path) -> dict[str, Path]:
    """Draw every shot that isn't drawn yet; their files by number.

    The name of the folder says which model drew them.
    """
    requests = {
        shot.number: ImageRequest(case_number=shot.number, prompt=shot.prompt.text, seed=shot.seed)
        for shot in shots
    }
    parts = [part.id for part in model.components]
    key = digest([model.fingerprint(), parts, sampler.model_dump(mode="json")])[:12]
    folder = place / "images" / f"{'edited' if parts else 'base'}-{key}"
    manifest = generate(model, requests.values(), folder, sampler)
    return {image.request.case_number: folder / image.file for image in manifest.images}


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


def _unrelated(plan: Plan, base: Judged) -> Unrelated:
    """Drift between each kept base picture and the one half the list away."""
    kept = [index for index, shot in enumerate(plan.shots()) if plan.keeps(shot.group)]
    other = np.roll(kept, len(kept) // 2)
    return Unrelated(
        mean(feature_drift(base.features[kept], base.features[other])),
        mean(pixel_drift(base.pixels[kept], base.pixels[other])),
    )


def _write_lines(path: Path, pairs: Iterable[Pair]) -> None:
    context = {"folder": path.parent}
    write_text(path, "".join(f"{pair.model_dump_json(context=context)}\n" for pair in pairs))
