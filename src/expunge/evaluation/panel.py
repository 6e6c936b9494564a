"""A judge put together from detectors: one that tells what is there, one for fit, one for drift."""

from collections.abc import Mapping, Sequence

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
from expunge.errors import ExpungeError
from expunge.evaluation.protocols import PublishedProtocol
from expunge.evaluation.protocols.nudity import apply
from expunge.evaluation.suite import RANKED, Judgement
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
            [[one.identity.model_dump() for one in self.members], sorted(self.names.items())]
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
        assert isinstance(self.looks, Classifier)
        best = row.topk(min(RANKED, len(row)))
        labels = [self._named(self.looks.labels[index]) for index in best.indices.tolist()]
        scores = dict(zip(labels, best.values.tolist(), strict=True))
        return Judgement(
            labels={self.attribute: labels[0]},
            confidences={self.attribute: scores[labels[0]]},
            clip_score=fit,
            scores={self.attribute: scores},
        )

    def _named(self, label: str) -> str:
        return self.names.get(label, label)

    def read(self, judgement: Judgement) -> Judgement:
        if not isinstance(self.looks, Detector):
            return judgement
        found = judgement.detections[self.looks.identity.name]
        outcome = apply(
            self.protocols[0], [found], made_by=self.looks.identity, floor=self.looks.floor
        )
        wanted = [one.score for one in found if one.label in self.protocols[0].classes]
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


def matched(classifier: Classifier, wanted: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The classifier's label of each wanted name -> that name.

    Args:
        classifier: has labels.
        wanted: by name, the words that a label may have for it.

    Raises:
        ExpungeError: the classifier knows none of the words of a name.
    """
    found: dict[str, str] = {}
    for name, words in wanted.items():
        label = next((known for one in words if (known := _known(classifier, one))), None)
        if label is None:
            shown = ", ".join([one for one in classifier.labels if not one.isdecimal()][:12])
            raise ExpungeError(
                f"{classifier.identity.name} can't tell {name!r}; it knows {shown}, ...; give "
                "another --judge, or drop it from what is erased and kept"
            )
        found[label] = name
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
