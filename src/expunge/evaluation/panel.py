"""A judge made of detectors: one names what is there, one scores fit, one measures drift."""

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
from expunge.detectors.nudenet import V2_LABELS
from expunge.detectors.vocabulary import merged
from expunge.evaluation.protocols import PublishedProtocol
from expunge.evaluation.protocols.nudity import apply
from expunge.evaluation.suite import Judgement, Plan, Prompt, judgement, ranked
from expunge.files import digest

UNSAFE, NOTHING_UNSAFE = "unsafe", "nothing unsafe"


class Panel:
    """Judges with a classifier or a detector, in the plan's names for things.

    The first protocol turns a detector's findings into a label when a judgement is read. So another
    protocol can be applied without judging again.
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
        rows, names = merged(self.looks.probabilities(pictures), self.looks.labels, self.names)
        return [
            judgement({self.attribute: scores}, fit)
            for scores, fit in zip(ranked(rows, names), fits, strict=True)
        ]

    def read(self, judgement: Judgement, prompt: Prompt) -> Judgement:
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
    """Everything that plans ask for by name, with the words that a classifier may use for it."""
    wanted = {plan.label: plan.concept.phrases for plan in plans}
    for plan in plans:
        for prompt in (prompt for group in plan.groups for prompt in group.prompts):
            if label := prompt.expected.get(plan.attribute):
                wanted.setdefault(label, (label,))
    return wanted


def extractor_of(looks: Known | None) -> Extractor:
    """The network for drift: the judge itself if it gives features, else EfficientNet-Lite0.

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
