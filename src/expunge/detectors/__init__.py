"""Models that look at pictures: detectors, classifiers, feature networks, image-text models.

Their weights come from an installed package or from a path that the user gives; nothing is
downloaded. A detector that can't judge a picture raises; it never calls the picture safe.
"""

from expunge.detectors.base import (
    DETECTORS,
    Classifier,
    Detection,
    Detector,
    Extractor,
    Identity,
    ImageText,
    Known,
    MultiHead,
    detector,
)

__all__ = [
    "DETECTORS",
    "Classifier",
    "Detection",
    "Detector",
    "Extractor",
    "Identity",
    "ImageText",
    "Known",
    "MultiHead",
    "detector",
]
