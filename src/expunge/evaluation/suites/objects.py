"""The suite for objects: ImageNet classes, judged by EfficientNet-Lite0 or your classifier.

The kept objects are Imagenette's ten classes, which ESD, UCE and RECE erase.
"""

from collections.abc import Sequence
from functools import partial

from expunge.detectors.base import detector
from expunge.detectors.clip import TEMPLATE
from expunge.detectors.vocabulary import word_classifier
from expunge.evaluation.panel import Panel, extractor_of, fit_of, named
from expunge.evaluation.suite import Options, Plan, Suite
from expunge.evaluation.suites.worded import Wording, worded

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


plan = partial(worded, WORDING)
"""The prompts for one thing."""


def judge(options: Options, plans: Sequence[Plan]) -> Panel:
    """The classifier, which must know everything that the plans ask for."""
    return told_apart(options.judge or "efficientnet", options, plans)


def told_apart(name: str, options: Options, plans: Sequence[Plan]) -> Panel:
    """A judge that recognises what the plans ask for, with the classifier of this name.

    A CLIP chooses among these names only, any other classifier among all of its labels.

    Raises:
        ExpungeError: it can't be loaded, is no classifier, or doesn't know one of the names.
    """
    wanted = named(plans)
    told = word_classifier(detector(name), tuple(wanted), phrases=wanted, template=TEMPLATE)
    return Panel(
        plans[0].attribute,
        told.classifier,
        extractor_of(told.classifier),
        names=told.names,
        fit=fit_of(options.clip),
    )


SUITE = Suite(plan=plan, judge=judge)
