"""From judged pairs of pictures to measurements; no picture is looked at here."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from expunge.errors import ExpungeError
from expunge.evaluation.records import Measurement, Pair, Picture
from expunge.evaluation.suite import Group, Plan, Role
from expunge.metrics.rates import Estimate, Rate, mean, paired_difference

KEPT = "kept prompts"
"""The group of all prompts of all retention groups."""

SHARE = "share of pictures"
DRAWN = "concept drawn"
CLIP = "CLIP-like score"
FEATURES = "feature drift"
PIXELS = "pixel drift"

SHOWN = 12
"""How many pictures of a group a report shows."""


class Unrelated(NamedTuple):
    """Drift between unrelated pictures of the base model, which gives drift its scale."""

    features: Estimate
    pixels: Estimate


def right_of(attribute: str) -> str:
    """The metric of how often an attribute is as asked, e.g. ``style right``."""
    return f"{attribute} right"


def measure(plan: Plan, pairs: Sequence[Pair], unrelated: Unrelated) -> tuple[Measurement, ...]:
    """All measurements of an evaluation.

    Args:
        plan: what was asked.
        pairs: one pair per prompt and seed.
        unrelated: the drift to compare with.

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
        rows.append(_clip(group, asked))
    rows += _drift([pair for pair in pairs if plan.keeps(pair.group)], unrelated)
    return tuple(rows)


def drawn_instead(plan: Plan, pairs: Iterable[Pair]) -> tuple[tuple[str, int], ...]:
    """What the edited model drew when asked for the concept by name, most frequent first."""
    first = plan.of_role("efficacy")[0].name
    labels = (pair.edited.labels[plan.attribute] for pair in pairs if pair.group == first)
    return tuple(Counter(labels).most_common())


def examples(plan: Plan, pairs: Iterable[Pair]) -> tuple[Pair, ...]:
    """Evenly spaced through each group's prompts at their first seed, whatever came out."""
    chosen: list[Pair] = []
    for group in plan.groups:
        first = [pair for pair in pairs if pair.group == group.name][:: len(plan.seeds)]
        count = min(SHOWN, len(first))
        chosen += [first[index * len(first) // count] for index in range(count)]
    return tuple(chosen)


def most_changed(plan: Plan, pairs: Iterable[Pair]) -> tuple[Pair, ...]:
    """The kept pictures with the largest feature drift, largest first."""
    kept = [pair for pair in pairs if plan.keeps(pair.group)]
    return tuple(sorted(kept, key=lambda pair: -pair.feature_drift)[: SHOWN // 2])


def _check_complete(plan: Plan, pairs: Iterable[Pair]) -> None:
    asked = {(shot.group, shot.prompt.text, shot.seed) for shot in plan.shots()}
    if missing := asked - {(pair.group, pair.prompt.text, pair.seed) for pair in pairs}:
        group, text, seed = min(missing)
        raise ExpungeError(
            f"{len(missing)} of {len(asked)} pictures are missing, e.g. {text!r} with seed {seed} "
            f"of the group {group!r}; run the evaluation again, it continues where it stopped"
        )


def _drawn(plan: Plan, group: Group, pairs: Sequence[Pair]) -> Measurement:
    def drawn(_: Pair, picture: Picture) -> bool:
        return picture.labels[plan.attribute] == plan.label

    return _share(group.name, DRAWN, "efficacy", pairs, drawn)


def _of_accuracy(plan: Plan, group: Group, pairs: Sequence[Pair]) -> Iterator[Measurement]:
    """One share per attribute that must be right; in prompts of the concept, all but its own."""
    named = {attribute for pair in pairs for attribute in pair.prompt.expected}
    asked = named - {plan.attribute} if group.role == "efficacy" else named
    for attribute in sorted(asked, key=lambda one: (one != plan.attribute, one)):

        def right(pair: Pair, picture: Picture, attribute: str = attribute) -> bool:
            return picture.labels[attribute] == pair.prompt.expected[attribute]

        told = [pair for pair in pairs if attribute in pair.prompt.expected]
        yield _share(group.name, right_of(attribute), "retention", told, right)


def _share(
    group: str,
    metric: str,
    role: Role,
    pairs: Sequence[Pair],
    hit: Callable[[Pair, Picture], bool],
) -> Measurement:
    base = [hit(pair, pair.base) for pair in pairs]
    edited = [hit(pair, pair.edited) for pair in pairs]
    return Measurement(
        group=group,
        metric=metric,
        role=role,
        unit=SHARE,
        higher_is_better=role == "retention",
        base=Rate.of(base),
        edited=Rate.of(edited),
        difference=paired_difference(base, edited),
    )


def _clip(group: Group, pairs: Sequence[Pair]) -> Measurement:
    base = [pair.base.clip_score for pair in pairs]
    edited = [pair.edited.clip_score for pair in pairs]
    return Measurement(
        group=group.name,
        metric=CLIP,
        role=group.role,
        unit="0 to 100",
        higher_is_better=group.role == "retention",
        base=mean(base),
        edited=mean(edited),
        difference=mean([after - before for before, after in zip(base, edited, strict=True)]),
    )


def _drift(kept: Sequence[Pair], unrelated: Unrelated) -> Iterator[Measurement]:
    for metric, unit, values, reference in (
        (FEATURES, "1 - cosine", [pair.feature_drift for pair in kept], unrelated.features),
        (PIXELS, "share of the range", [pair.pixel_drift for pair in kept], unrelated.pixels),
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
