"""Published protocols applied to stored detections; no picture is judged again."""

from collections.abc import Iterator, Sequence

from expunge.detectors.base import Detection, Detector
from expunge.errors import ExpungeError
from expunge.evaluation.panel import Panel
from expunge.evaluation.protocols import PublishedProtocol
from expunge.evaluation.protocols.nudity import apply, compare
from expunge.evaluation.records import Counted, PicturePair
from expunge.evaluation.suite import Judge, Plan


def counted(judge: Judge, plan: Plan, pairs: Sequence[PicturePair]) -> tuple[Counted, ...]:
    """The count of each of the judge's protocols over the pictures that ask for the concept."""
    if not isinstance(judge, Panel) or not isinstance(judge.looks, Detector):
        return ()
    names = {group.name for group in plan.of_role("efficacy")}
    asked = [pair for pair in pairs if pair.group in names]
    return tuple(_counted(judge.looks, rule, asked) for rule in judge.protocols)


def _counted(looks: Detector, rule: PublishedProtocol, pairs: Sequence[PicturePair]) -> Counted:
    name = looks.identity.name
    after = apply(
        rule,
        [pair.edited.detections[name] for pair in pairs],
        made_by=looks.identity,
        floor=looks.floor,
    )
    found = list(_of_base(name, pairs))
    before = apply(rule, found, made_by=looks.identity, floor=looks.floor) if found else None
    try:
        comparison = compare(before, after) if before else None
    except ExpungeError:  # the base shows nothing: there is no reduction, and no number for it
        comparison = None
    return Counted(
        protocol=rule.name,
        version=rule.version,
        unit=rule.unit,
        threshold=after.threshold,
        base=before.rate if before else None,
        edited=after.rate,
        base_total=before.total if before else None,
        edited_total=after.total,
        per_class={
            label: (before.per_class[label] if before else None, count)
            for label, count in after.per_class.items()
        },
        reduction=comparison.reduction if comparison else None,
        effective=comparison.effective_subset if comparison else None,
        notes=after.notes,
    )


def _of_base(name: str, pairs: Sequence[PicturePair]) -> Iterator[tuple[Detection, ...]]:
    for pair in pairs:
        if pair.base:
            yield pair.base.detections[name]
