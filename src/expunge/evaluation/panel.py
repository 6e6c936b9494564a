"""A judge put together from detectors: one that tells what is there, one for fit, one for drift."""

from collections.abc import Mapping, Sequence

import torch
from PIL import Image
from torch import Tensor

from expunge.detectors.base import (
    Classifier,
    Detector,
    Extractor,
    ImageText,
    Known,
    detector,
)
from expunge.detectors.image_classifier import class_index
from expunge.detectors.nudenet import V2_LABELS
from expunge.errors import ExpungeError
from expunge.evaluation.protocols import PublishedProtocol
from expunge.evaluation.protocols.nudity import apply
from expunge.evaluation.suite import Judgement, Plan, judgement, ranked
from expunge.files import digest

UNSAFE, NOTHING_UNSAFE = "unsafe", "nothing unsafe"


class Panel:
    """Looks with a classifier or a detector; its names for things are replaced by the plan's.

    A detector's findings become a label when a judgement is read, by the first of the protocols,
    so that other protocols need no new look.
    """

    size = None

    def __init__(
        self,
        attribute: str,
        looks: Classifier | Detector | None,
        extractor: Extractor,
        *,
        names: Mapping[str, str] | None = None,
        fit: ImageText | None = None,
        protocols: Sequence[PublishedProtocol] = (),
    ) -> None:
        self.attribute, self.looks, self.extractor, self.fit = attribute, looks, extractor, fit
        self.names = dict(names or {})
        self.protocols = tuple(protocols)
        self.members: tuple[Known, ...] = tuple(one for one in (looks, extractor, fit) if one)
        self.name = " + ".join(dict.fromkeys(one.identity.name for one in self.members))
        self.sha256 = digest(
            [
                attribute,
                [one.identity.model_dump() for one in self.members],
                sorted(self.names.items()),
            ]
        )

    @property
    def decision(self) -> str:
        if isinstance(self.looks, Detector):
            first = self.protocols[0]
            return f"{first.name}, version {first.version}: {first.title}"
        if self.looks is None:
            return "nothing is told apart; only fit and drift are measured"
        return "the label with the highest probability, without a threshold"

    def judge(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> list[Judgement]:
        fits = self.fit.scores(pictures, prompts).tolist() if self.fit else [None] * len(pictures)
        if isinstance(self.looks, Detector):
            found = self.looks.detect(pictures)
            name = self.looks.identity.name
            return [
                Judgement(labels={}, confidences={}, clip_score=fit, detections={name: each})
                for fit, each in zip(fits, found, strict=True)
            ]
        if self.looks is None:
            return [Judgement(labels={}, confidences={}, clip_score=fit) for fit in fits]
        return [
            self._labelled(row, fit)
            for row, fit in zip(self.looks.probabilities(pictures), fits, strict=True)
        ]

    def _labelled(self, row: Tensor, fit: float | None) -> Judgement:
        """Labels with one name count together."""
        assert isinstance(self.looks, Classifier)
        named = [self.names.get(label, label) for label in self.looks.labels]
        places = {name: place for place, name in enumerate(dict.fromkeys(named))}
        index = torch.tensor([places[name] for name in named], device=row.device)
        (scores,) = ranked(row.new_zeros(1, len(places)).index_add_(1, index, row[None]), [*places])
        return judgement({self.attribute: scores}, fit)

    def read(self, judgement: Judgement) -> Judgement:
        if not isinstance(self.looks, Detector):
            return judgement
        found = judgement.detections[self.looks.identity.name]
        outcome = apply(
            self.protocols[0], [found], made_by=self.looks.identity, floor=self.looks.floor
        )
        counted = self.protocols[0].classes
        wanted = [one.score for one in found if V2_LABELS.get(one.label, one.label) in counted]
        label = UNSAFE if outcome.fires[0] else NOTHING_UNSAFE
        return judgement.model_copy(
            update={
                "labels": {self.attribute: label},
                "confidences": {self.attribute: max(wanted, default=0.0)},
                "scores": {self.attribute: {UNSAFE: max(wanted, default=0.0)}},
            }
        )

    def features(self, pictures: Sequence[Image.Image]) -> Tensor:
        return self.extractor.features(pictures)


def named(plans: Sequence[Plan]) -> dict[str, tuple[str, ...]]:
    """Everything that plans ask for by name, each with the words a classifier may have for it."""
    wanted = {plan.label: plan.concept.phrases for plan in plans}
    for plan in plans:
        for prompt in (prompt for group in plan.groups for prompt in group.prompts):
            if label := prompt.expected.get(plan.attribute):
                wanted.setdefault(label, (label,))
    return wanted


def matched(classifier: Classifier, wanted: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The classifier's labels of each wanted name -> that name.

    Args:
        classifier: has labels.
        wanted: by name, the words that a label may have for it.

    Raises:
        ExpungeError: the classifier knows none of the words of a name, or two names are one class.
    """
    found: dict[str, str] = {}
    for name, words in wanted.items():
        labels = [known for one in words if (known := _known(classifier, one))]
        if not labels:
            shown = ", ".join([one for one in classifier.labels if not one.isdecimal()][:12])
            raise ExpungeError(
                f"{classifier.identity.name} can't tell {name!r}; it knows {shown}, ...; give "
                "another --judge, or drop it from what is erased and kept"
            )
        for label in labels:
            if found.setdefault(label, name) != name:
                raise ExpungeError(
                    f"{classifier.identity.name} has one class for {found[label]!r} and {name!r}; "
                    "make one a synonym of the other"
                )
    return found


def _known(classifier: Classifier, words: str) -> str | None:
    try:
        return classifier.labels[class_index(classifier.labels, words)]
    except ExpungeError:
        return None


def extractor_of(looks: Known | None) -> Extractor:
    """What measures drift: the judge itself where it can, else EfficientNet-Lite0.

    Raises:
        ExpungeError: its package isn't installed.
    """
    if isinstance(looks, Extractor):
        return looks
    found: Extractor = detector("efficientnet")
    return found


def fit_of(clip: str) -> ImageText | None:
    """The CLIP of ``--clip``, if one is named."""
    if not clip:
        return None
    found: ImageText = detector(clip if clip.startswith("clip:") else f"clip:{clip}")
    return found
