"""NudeNet 3: faces and covered or exposed parts of the body, each with a box and a score.

Bedapudi, "NudeNet: neural nets for nudity detection and censoring", version 3.4. Its wheel holds
AGPL-3.0 licence texts although its metadata says MIT, so no other extra installs it.

The package swaps the colour channels twice: it is given BGR, as its own file reader does, and the
network gets BGR. Published counts were made this way, and so are these.
"""

import json
from ast import literal_eval
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from expunge.detectors.base import Detection, Identity, Images
from expunge.detectors.packaged import Pixels, each, folder, loading
from expunge.errors import ExpungeError
from expunge.files import sha256

LABELS = (
    "FEMALE_GENITALIA_COVERED",
    "FACE_FEMALE",
    "BUTTOCKS_EXPOSED",
    "FEMALE_BREAST_EXPOSED",
    "FEMALE_GENITALIA_EXPOSED",
    "MALE_BREAST_EXPOSED",
    "ANUS_EXPOSED",
    "FEET_EXPOSED",
    "BELLY_COVERED",
    "FEET_COVERED",
    "ARMPITS_COVERED",
    "ARMPITS_EXPOSED",
    "FACE_MALE",
    "BELLY_EXPOSED",
    "MALE_GENITALIA_EXPOSED",
    "ANUS_COVERED",
    "FEMALE_BREAST_COVERED",
    "BUTTOCKS_COVERED",
)
"""The classes of version 3, in the order of the network's outputs."""

V2_LABELS: Mapping[str, str] = {
    "EXPOSED_ANUS": "ANUS_EXPOSED",
    "EXPOSED_ARMPITS": "ARMPITS_EXPOSED",
    "EXPOSED_BELLY": "BELLY_EXPOSED",
    "EXPOSED_BUTTOCKS": "BUTTOCKS_EXPOSED",
    "EXPOSED_FEET": "FEET_EXPOSED",
    "EXPOSED_BREAST_F": "FEMALE_BREAST_EXPOSED",
    "EXPOSED_GENITALIA_F": "FEMALE_GENITALIA_EXPOSED",
    "EXPOSED_BREAST_M": "MALE_BREAST_EXPOSED",
    "EXPOSED_GENITALIA_M": "MALE_GENITALIA_EXPOSED",
    "COVERED_BELLY": "BELLY_COVERED",
    "COVERED_BUTTOCKS": "BUTTOCKS_COVERED",
    "COVERED_FEET": "FEET_COVERED",
    "COVERED_BREAST_F": "FEMALE_BREAST_COVERED",
    "COVERED_GENITALIA_F": "FEMALE_GENITALIA_COVERED",
    "FACE_F": "FACE_FEMALE",
    "FACE_M": "FACE_MALE",
}
"""The classes of version 2, each with its name in version 3."""


class NudeNet:
    """The detector 320n of the package, or another of its family from an ONNX file (640m).

    Raises:
        ExpungeError: the package isn't installed, or the file isn't such a network.
    """

    labels: tuple[str, ...] = LABELS
    floor: float = 0.25
    """The suppression of overlapping boxes drops lower scores. It ignores classes, so of two things
    in nearly the same box only the one with the higher score is reported."""

    def __init__(self, weights: str = "") -> None:
        file = Path(weights) if weights else folder("nudenet", "nudenet") / "320n.onnx"
        folder("nudenet", "nudenet")
        if not file.is_file():
            raise ExpungeError(f"nudenet: there is no file {file}")
        with loading(f"nudenet, {file.name}"):
            from nudenet import NudeDetector

            network = NudeDetector(model_path=str(file))
            side = resolution(network.onnx_session)
            network.input_width = network.input_height = side
            network.onnx_session = _Finite(network.onnx_session)
        self._network = network
        self.identity = Identity(
            name="nudenet", version="" if weights else version("nudenet"), sha256=sha256(file)
        )

    def detect(self, pictures: Images) -> list[tuple[Detection, ...]]:
        """Everything found in each picture, highest score first.

        Raises:
            ExpungeError: a picture can't be judged.
        """
        return each("nudenet", pictures, self._detect)

    def _detect(self, pixels: Pixels) -> tuple[Detection, ...]:
        bgr = np.ascontiguousarray(pixels[..., ::-1])
        found = [
            Detection(label=one["class"], score=one["score"], box=tuple(one["box"]))
            for one in self._network.detect(bgr)
        ]
        return tuple(sorted(found, key=lambda detection: -detection.score))


def resolution(session: Any) -> int:
    """Side in pixels of the pictures that an ONNX session takes.

    It is in the input's shape or, if that is open, in the exporter's metadata.

    Raises:
        ExpungeError: nothing says it, the pictures aren't square, or the outputs aren't boxes of
            the 18 classes of version 3.
    """
    notes = session.get_modelmeta().custom_metadata_map
    names = literal_eval(notes.get("names", "{}")) or dict(enumerate(LABELS))
    if session.get_outputs()[0].shape[1] != 4 + len(LABELS) or names != dict(enumerate(LABELS)):
        raise ExpungeError("nudenet: the file is no network with the 18 classes of NudeNet 3")
    sides = [side for side in session.get_inputs()[0].shape[2:] if isinstance(side, int)]
    sides = sides or json.loads(notes.get("imgsz", "[]"))
    if len(sides) != 2 or sides[0] != sides[1]:
        raise ExpungeError(
            "nudenet: the file doesn't say which square pictures it takes; "
            "export it with a fixed input size"
        )
    return int(sides[0])


class _Finite:
    """A session that fails if the network is broken, instead of finding nothing."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def run(self, names: Any, inputs: Any) -> Any:
        outputs = self._session.run(names, inputs)
        if not np.isfinite(outputs[0]).all():
            raise ValueError("the network's output is infinite or NaN")
        return outputs
