"""How far a model's kept pictures are from the base's, and how far the base's are apart."""

import numpy as np
from PIL import Image

from expunge.detectors.base import Identity
from expunge.detectors.frechet import FEW, Reference, SetDistance, frechet, kid
from expunge.detectors.packaged import Pixels
from expunge.evaluation.judging import Judged, feature_drift, levels, pixel_drift
from expunge.evaluation.panel import Panel
from expunge.evaluation.scoring import Unrelated
from expunge.evaluation.suite import Judge, Plan
from expunge.statistics.rates import mean

TO_BASE: Reference = "the base model's pictures"


def _kept(plan: Plan) -> list[int]:
    return [index for index, shot in enumerate(plan.shots) if plan.keeps(shot.group)]


def unrelated(plan: Plan, base: Judged) -> Unrelated:
    """Drift between kept base pictures that have nothing to do with each other.

    Each is compared with the one half the list away.
    """
    kept = _kept(plan)
    other = np.roll(kept, len(kept) // 2)
    files = [picture.file for picture in base.pictures]
    return Unrelated(
        mean(feature_drift(base.features[kept], base.features[other])),
        mean(
            [
                pixel_drift(*_of_one_size(levels(files[one]), levels(files[two])))
                for one, two in zip(kept, other, strict=True)
            ]
        ),
    )


def _of_one_size(one: Pixels, other: Pixels) -> tuple[Pixels, Pixels]:
    """Both pictures in the first one's size: rows of a list may ask for different sizes."""
    height, width = one.shape[:2]
    return one, np.asarray(Image.fromarray(other).resize((width, height)))


def distances(
    judge: Judge, plan: Plan, base: Judged | None, after: Judged
) -> tuple[SetDistance, ...]:
    """Distances of the kept pictures' features from the base's, if there are enough pictures."""
    kept = _kept(plan)
    if base is None or len(kept) < FEW:
        return ()
    network = judge.extractor.identity if isinstance(judge, Panel) else _identity(judge)
    rows, reference = after.features[kept], base.features[kept]
    found = [kid(rows, reference, network=network, to=TO_BASE)]
    if len(kept) > rows.shape[1]:
        found.append(frechet(rows, reference, network=network, to=TO_BASE))
    return tuple(found)


def _identity(judge: Judge) -> Identity:
    return Identity(name=judge.name, version="", sha256=judge.sha256)
