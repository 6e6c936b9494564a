"""Judges that any picture can be shown to: what they say depends on its pixels alone.

``register`` puts them where the real ones are found by name.
"""

import numpy as np
import torch

from expunge.detectors import DETECTORS
from expunge.detectors.base import Detection, Identity
from expunge.detectors.faces import NO_FACE, UNKNOWN
from expunge.detectors.nudenet import LABELS
from expunge.errors import ExpungeError


def pixels(picture):
    return np.asarray(picture, dtype=np.int64)


class Looks:
    """Counts the pictures that all judges of its class were shown, and can be told to fail."""

    seen = 0
    fails_at = None

    def __init__(self, weights=""):
        self.identity = Identity(name=type(self).name, version="1", sha256="0" * 64)

    @classmethod
    def look(cls, pictures):
        for before, picture in zip((None, *pictures), pictures, strict=False):
            cls.seen += picture is not before  # those that only fill a batch up aren't counted
            if cls.fails_at is not None and cls.seen > cls.fails_at:
                raise ExpungeError(f"{cls.name} can't judge picture {cls.seen}")
            yield pixels(picture)

    def features(self, pictures):
        small = [pixels(one.resize((4, 4))).reshape(-1) for one in pictures]
        return torch.tensor(np.stack(small)).float() + 1


class Things(Looks):
    """A classifier; a label may list several names, as ImageNet's do."""

    name = "things"
    labels = (
        "church, church building",
        "gas pump, gasoline pump, petrol pump",
        "tench",
        "English springer",
        "cassette player",
        "chain saw",
        "French horn",
        "garbage truck",
        "golf ball",
        "parachute",
        "beagle",
    )

    def probabilities(self, pictures):
        rows = torch.full((len(pictures), len(self.labels)), 0.5 / len(self.labels))
        for row, levels in zip(rows, self.look(pictures), strict=True):
            row[int(levels.sum()) % len(self.labels)] += 0.5
        return rows


class Faces(Things):
    name = "faces"
    labels = (NO_FACE, UNKNOWN, "ada", "bob")


class Safety(Things):
    """Two of its labels are unsafe."""

    name = "safety"
    labels = ("plain", "drawn", "nsfw", "inappropriate")


class Parts(Looks):
    """A detector; what it finds in some pictures is between two published thresholds."""

    name = "nudenet"
    labels = LABELS
    floor = 0.25

    def detect(self, pictures):
        return [self._found(int(levels.sum()) % 3) for levels in self.look(pictures)]

    @staticmethod
    def _found(kind):
        return tuple(Detection(label="FEET_EXPOSED", score=0.4 + 0.3 * n) for n in range(kind))


class Words(Looks):
    """Text and picture fit as well as their numbers say; chooses among labels as well."""

    name = "clip"

    def scores(self, pictures, texts):
        found = [
            20 + levels.sum() % 7 + len(text) % 5
            for levels, text in zip(self.look(pictures), texts, strict=True)
        ]
        return torch.tensor(found, dtype=torch.float32)

    def zero_shot(self, labels, template=""):
        chosen = Things()
        chosen.labels = labels
        return chosen


JUDGES = {
    "efficientnet": Things,
    "things": Things,
    "faces": Faces,
    "safety": Safety,
    "nudenet": Parts,
    "clip": Words,
}

PLACES = {name: f"toy_judges:{judge.__name__}" for name, judge in JUDGES.items()}


def register(monkeypatch):
    for judge in {*JUDGES.values()}:
        monkeypatch.setattr(judge, "seen", 0)
        monkeypatch.setattr(judge, "fails_at", None)
    for name, place in PLACES.items():
        monkeypatch.setitem(DETECTORS.places, name, place)
