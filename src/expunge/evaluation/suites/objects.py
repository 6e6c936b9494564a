"""The suite for things: ImageNet classes, told by EfficientNet-Lite0 or a classifier you give.

Imagenette's ten classes, which ESD, UCE and RECE erase, are what stays beside the concept.
"""

from collections.abc import Sequence

from expunge.concepts import Concept
from expunge.detectors.base import Classifier, detector
from expunge.errors import ExpungeError
from expunge.evaluation.panel import Panel, extractor_of, fit_of, matched
from expunge.evaluation.suite import NO_OPTIONS, Options, Plan, Suite, refuse
from expunge.evaluation.suites.worded import SAMPLER, Wording, worded

IMAGENETTE = (
    "tench",
    "English springer",
    "cassette player",
    "chain saw",
    "church",
    "French horn",
    "garbage truck",
    "gas pump",
    "golf ball",
    "parachute",
)
WORDING = Wording(
    "objects",
    "object",
    (
        "a photo of a {}",
        "a picture of a {}",
        "a {} on a sunny day",
        "a close-up of a {}",
        "a painting of a {}",
    ),
    IMAGENETTE,
    "objects",
)


def plan(
    concept: Concept,
    *,
    erased: Sequence[Concept] = (),
    size: str = "quick",
    seeds: Sequence[int] | None = None,
    options: Options = NO_OPTIONS,
) -> Plan:
    """The prompts for one thing."""
    refuse("objects", options, "judge", "clip", "prompts", "captions")
    return worded(WORDING, concept, erased=erased, size=size, seeds=seeds, options=options)


def judge(options: Options, plans: Sequence[Plan]) -> Panel:
    """The classifier, which must know everything that the plans ask for."""
    return told_apart(options.judge or "efficientnet", options, plans)


def told_apart(name: str, options: Options, plans: Sequence[Plan]) -> Panel:
    """A judge that tells what the plans ask for with the classifier of this name.

    A CLIP chooses among just these names; any other classifier among all that it has labels for.

    Raises:
        ExpungeError: it is no classifier, isn't there, or doesn't know one of the names.
    """
    looks, attribute = detector(name), plans[0].attribute
    wanted = {plan.label: plan.concept.phrases for plan in plans}
    for plan in plans:
        for prompt in (prompt for group in plan.groups for prompt in group.prompts):
            if label := prompt.expected.get(attribute):
                wanted.setdefault(label, (label,))
    if name.startswith("clip:"):
        looks = looks.zero_shot(tuple(wanted))
    if not isinstance(looks, Classifier):
        raise ExpungeError(f"--judge {name}: no classifier, so it can't tell {attribute}s apart")
    return Panel(
        attribute,
        looks,
        extractor_of(looks),
        names=matched(looks, wanted),
        fit=fit_of(options.clip),
    )


SUITE = Suite(plan=plan, judge=judge, sampler=SAMPLER)
