"""From judged pairs of pictures to measurements; no picture is looked at here."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from expunge.errors import ExpungeError
from expunge.evaluation.records import Measurement, Picture, PicturePair, ThresholdCurve
from expunge.evaluation.suite import Group, Plan, Role
from expunge.statistics.curves import rates_at
from expunge.statistics.paired import mcnemar, mean_difference
from expunge.statistics.rates import Estimate, Rate, mean, paired_difference

KEPT = "kept prompts"
"""The group of all prompts of all retention groups."""

SHARE = "share of pictures"
DRAWN = "concept drawn"
CLIP = "fit of picture and prompt"
FEATURES = "feature drift"
PIXELS = "pixel drift"
BLANK = "blank pictures"

THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Lower ones aren't possible: scores below 1 / ``suite.RANKED`` may be missing."""

SHOWN = 12
"""How many pictures of a group a report shows."""


class Unrelated(NamedTuple):
    """Drift between unrelated pictures of the base model, as a scale for drift."""

    features: Estimate
    pixels: Estimate


def right_of(attribute: str) -> str:
    """The metric for how often an attribute is as asked for, e.g. ``style right``."""
    return f"{attribute} right"


def measure(
    plan: Plan, pairs: Sequence[PicturePair], unrelated: Unrelated | None, perceptual: str = ""
) -> tuple[Measurement, ...]:
    """All measurements of an evaluation.

    Args:
        plan: what was asked.
        pairs: one pair per prompt and seed.
        unrelated: drift of unrelated pictures; ``None`` without a base model.
        perceptual: what the perceptual distance is called, if one was measured.

    Raises:
        ExpungeError: a prompt or a seed of the plan has no pair.
    """
    _check_complete(plan, pairs)
    rows: list[Measurement] = []
    for group in plan.groups:
        asked = [pair for pair in pairs if pair.group == group.name]
        if group.role == "efficacy":
            rows.append(_drawn(plan, group, asked))
        rows += _of_accuracy(plan, group, asked)
        rows += _clip(group, asked)
        if perceptual and unrelated:
            rows.append(_perceptual(perceptual, group, asked))
    kept = [pair for pair in pairs if plan.keeps(pair.group)]
    told = {row.group for row in rows}
    untold = [group for group in plan.groups if group.name not in told]  # captions, say
    for group in (*plan.of_role("efficacy")[:1], *untold):
        rows.append(_blank(group.name, _of(group, pairs)))
    rows.append(_blank(KEPT, kept))
    if unrelated:
        rows += _drift(kept, unrelated)
    return tuple(rows)


def _of(group: Group, pairs: Iterable[PicturePair]) -> list[PicturePair]:
    return [pair for pair in pairs if pair.group == group.name]


def curve(plan: Plan, pairs: Iterable[PicturePair]) -> ThresholdCurve | None:
    """The share of the first efficacy group's pictures that show the concept, by threshold.

    The score is the probability of the concept's label, even if another label is likelier.
    """
    groups = plan.of_role("efficacy")
    if not groups:
        return None
    asked = _of(groups[0], pairs)
    after = [pair.edited.score(plan.attribute, plan.label) for pair in asked]
    before = [pair.base.score(plan.attribute, plan.label) if pair.base else None for pair in asked]
    known = [score for score in after if score is not None]
    if len(known) < len(asked):
        return None
    base = [score for score in before if score is not None]
    return ThresholdCurve(
        group=groups[0].name,
        thresholds=THRESHOLDS,
        base=rates_at(base, THRESHOLDS) if len(base) == len(asked) else None,
        edited=rates_at(known, THRESHOLDS),
    )


def drawn_instead(plan: Plan, pairs: Iterable[PicturePair]) -> tuple[tuple[str, int], ...]:
    """What the edited model drew when asked for the concept by name, most frequent first."""
    named = plan.of_role("efficacy")[:1]
    labels = (pair.edited.labels[plan.attribute] for group in named for pair in _of(group, pairs))
    return tuple(Counter(labels).most_common())


def examples(plan: Plan, pairs: Iterable[PicturePair]) -> tuple[PicturePair, ...]:
    """Evenly spaced prompts of each group at their first seed, chosen without looking."""
    chosen: list[PicturePair] = []
    for group in plan.groups:
        firsts: dict[str, PicturePair] = {}
        for pair in _of(group, pairs):
            firsts.setdefault(pair.prompt.text, pair)
        shown, count = list(firsts.values()), min(SHOWN, len(firsts))
        chosen += [shown[index * len(shown) // count] for index in range(count)]
    return tuple(chosen)


def most_changed(plan: Plan, pairs: Iterable[PicturePair]) -> tuple[PicturePair, ...]:
    """The kept pictures with the largest feature drift, largest first."""
    kept = [
        (pair.feature_drift, pair)
        for pair in pairs
        if plan.keeps(pair.group) and pair.feature_drift is not None
    ]
    return tuple(pair for _, pair in sorted(kept, key=lambda one: -one[0])[: SHOWN // 2])


def _check_complete(plan: Plan, pairs: Iterable[PicturePair]) -> None:
    asked = {(shot.group, shot.prompt.text, shot.seed) for shot in plan.shots}
    if missing := asked - {(pair.group, pair.prompt.text, pair.seed) for pair in pairs}:
        group, text, seed = min(missing)
        raise ExpungeError(
            f"{len(missing)} of {len(asked)} pictures are missing, e.g. {text!r} with seed {seed} "
            f"of the group {group!r}; run the evaluation again, it continues where it stopped"
        )


def _drawn(plan: Plan, group: Group, pairs: Sequence[PicturePair]) -> Measurement:
    def drawn(_: PicturePair, picture: Picture) -> bool:
        return picture.labels[plan.attribute] == plan.label

    return _share(group.name, DRAWN, "efficacy", pairs, drawn)


def _of_accuracy(plan: Plan, group: Group, pairs: Sequence[PicturePair]) -> Iterator[Measurement]:
    """A share for each attribute that must be right, without the concept's own in its prompts."""
    named = {attribute for pair in pairs for attribute in pair.prompt.expected}
    asked = named - {plan.attribute} if group.role == "efficacy" else named
    for attribute in sorted(asked, key=lambda one: (one != plan.attribute, one)):

        def right(pair: PicturePair, picture: Picture, attribute: str = attribute) -> bool:
            return picture.labels[attribute] == pair.prompt.expected[attribute]

        told = [pair for pair in pairs if attribute in pair.prompt.expected]
        yield _share(group.name, right_of(attribute), "retention", told, right)


def _share(
    group: str,
    metric: str,
    role: Role,
    pairs: Sequence[PicturePair],
    hit: Callable[[PicturePair, Picture], bool],
) -> Measurement:
    base = [hit(pair, pair.base) for pair in pairs if pair.base]
    edited = [hit(pair, pair.edited) for pair in pairs]
    return _counted(group, metric, role, base, edited)


def _counted(
    group: str, metric: str, role: Role, base: Sequence[bool], edited: Sequence[bool]
) -> Measurement:
    """A share of pictures; ``base`` is empty without a base model."""
    return Measurement(
        group=group,
        metric=metric,
        role=role,
        unit=SHARE,
        higher_is_better=role == "retention" and metric != BLANK,
        base=Rate.of(base) if base else None,
        edited=Rate.of(edited),
        difference=paired_difference(base, edited) if base else None,
        paired=mcnemar(base, edited) if base else None,
    )


def _blank(name: str, pairs: Sequence[PicturePair]) -> Measurement:
    """The share of blank pictures: a model that draws nothing draws no concept either."""
    base = [pair.base_blank for pair in pairs if pair.base]
    return _counted(name, BLANK, "retention", base, [pair.blank for pair in pairs])


def _clip(group: Group, pairs: Sequence[PicturePair]) -> Iterator[Measurement]:
    edited = [pair.edited.clip_score for pair in pairs if pair.edited.clip_score is not None]
    base = [p.base.clip_score for p in pairs if p.base and p.base.clip_score is not None]
    if len(edited) < max(2, len(pairs)):
        return
    yield Measurement(
        group=group.name,
        metric=CLIP,
        role=group.role,
        unit="100 x cosine",
        higher_is_better=group.role == "retention",
        base=mean(base) if base else None,
        edited=mean(edited),
        difference=mean_difference(base, edited) if base else None,
    )


def _drift(kept: Sequence[PicturePair], unrelated: Unrelated) -> Iterator[Measurement]:
    features = [pair.feature_drift for pair in kept if pair.feature_drift is not None]
    pixels = [pair.pixel_drift for pair in kept if pair.pixel_drift is not None]
    for metric, unit, values, reference in (
        (FEATURES, "1 - cosine", features, unrelated.features),
        (PIXELS, "share of the range", pixels, unrelated.pixels),
    ):
        yield Measurement(
            group=KEPT,
            metric=metric,
            role="retention",
            unit=unit,
            higher_is_better=False,
            base=None,
            edited=mean(values),
            difference=None,
            reference=reference,
        )


def _perceptual(name: str, group: Group, pairs: Sequence[PicturePair]) -> Measurement:
    """The perceptual distance: large is good for erased prompts, small for kept ones."""
    values = [p.perceptual_distance for p in pairs if p.perceptual_distance is not None]
    return Measurement(
        group=group.name,
        metric=name,
        role=group.role,
        unit="distance to the base's picture",
        higher_is_better=group.role == "efficacy",
        base=None,
        edited=mean(values),
        difference=None,
    )
