"""Whose face a picture shows: dlib's face embeddings, compared with those of reference pictures.

King, "Dlib-ml: a machine learning toolkit", JMLR 2009, and the network's own description: two
embeddings are of one person if they are less than 0.6 apart.
"""

from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from expunge.detectors.base import Identity, Images
from expunge.detectors.packaged import Pixels, each, folder, loading, reason
from expunge.errors import ExpungeError
from expunge.files import digest, sha256

SAME = 0.6
"""Embeddings closer than this are of one person."""
SURE = 0.2
"""Detections that score lower are no faces: textures in photographs reach 0.1."""
UPSAMPLED = 1
"""How often a picture is doubled before the search; once is enough for faces of 40 pixels."""
NO_FACE = "no face"
UNKNOWN = "unknown"
_SHARPNESS = 0.05  # of probabilities: a person 0.1 nearer than another is e^2 times as likely


class FaceNetwork:
    """Finds the main face of a picture and embeds it.

    The histogram-of-gradients detector is dlib's own; landmarks (five points) and the embedding
    come from ``face-recognition-models``.

    Raises:
        ExpungeError: a package isn't installed.
    """

    def __init__(self) -> None:
        models = folder("face_recognition_models", "faces") / "models"
        folder("dlib", "faces")
        files = (
            models / "shape_predictor_5_face_landmarks.dat",
            models / "dlib_face_recognition_resnet_model_v1.dat",
        )
        with loading("faces"):
            import dlib

            self._find = dlib.get_frontal_face_detector()
            self._landmarks = dlib.shape_predictor(str(files[0]))
            self._network = dlib.face_recognition_model_v1(str(files[1]))
            self.identity = Identity(
                name="faces",
                version=f"{version('face-recognition-models')} with dlib {dlib.__version__}",
                sha256=digest([sha256(file) for file in files]),
            )

    def embeddings(self, pictures: Images) -> list[Tensor | None]:
        """``[128]``, float32, of the largest face in each picture; ``None`` where there is none.

        Raises:
            ExpungeError: a picture can't be judged.
        """
        return each("faces", pictures, self._embedding)

    def _embedding(self, pixels: Pixels) -> Tensor | None:
        pixels = np.ascontiguousarray(pixels)
        boxes, scores, _ = self._find.run(pixels, UPSAMPLED, 0.0)
        faces = [box for box, score in zip(boxes, scores, strict=True) if score >= SURE]
        if not faces:
            return None
        landmarks = self._landmarks(pixels, max(faces, key=lambda box: box.area()))
        vector = torch.tensor(list(self._network.compute_face_descriptor(pixels, landmarks)))
        if not bool(vector.isfinite().all()):
            raise ValueError("the network's output is infinite or NaN")
        return vector


class People:
    """Names the person of a folder whose centroid is nearest to a picture's face.

    The folder holds one folder of reference pictures for each person, named as the person. A
    person's centroid is the mean of the embeddings of these pictures.

    A picture without a face is ``"no face"`` with probability 1. Otherwise probabilities are a
    softmax of negative distances, where ``"unknown"`` has a distance of 0.6. So the likeliest label
    is the nearest person if closer than 0.6, else ``"unknown"``. Probabilities aren't calibrated.

    Raises:
        ExpungeError: a package isn't installed, the folder has no person in it, or a person has
            no picture or one that shows no face.
    """

    def __init__(self, weights: str = "") -> None:
        people = _references(weights)
        self._faces = FaceNetwork()
        self.labels: tuple[str, ...] = (NO_FACE, UNKNOWN, *people)
        self.centroids = torch.stack([self._centroid(files) for files in people.values()])
        """``[people, 128]``"""
        sums = {person: [sha256(file) for file in files] for person, files in people.items()}
        own = self._faces.identity
        self.identity = own.model_copy(update={"sha256": digest([own.sha256, sums])})

    def _centroid(self, files: list[Path]) -> Tensor:
        found = []
        for file in files:
            (embedding,) = self._faces.embeddings([_opened(file)])
            if embedding is None:
                raise ExpungeError(f"{file}: no face found; give another picture of this person")
            found.append(embedding)
        return torch.stack(found).mean(0)

    def embeddings(self, pictures: Images) -> list[Tensor | None]:
        """``[128]``, float32, of the largest face in each picture; ``None`` where there is none."""
        return self._faces.embeddings(pictures)

    def distances(self, pictures: Images) -> list[Tensor | None]:
        """``[people]``: from each picture's face to every centroid; ``None`` without a face."""
        return [
            None if one is None else (self.centroids - one).norm(dim=1)
            for one in self.embeddings(pictures)
        ]

    def probabilities(self, pictures: Images) -> Tensor:
        """``[pictures, 2 + people]``, float32, rows that add up to 1.

        Raises:
            ExpungeError: a picture can't be judged.
        """
        return torch.stack([likely(one, len(self.centroids)) for one in self.distances(pictures)])


def likely(distances: Tensor | None, people: int) -> Tensor:
    """Probabilities ``[2 + people]`` of no face, an unknown person, and each person."""
    if distances is None:
        return torch.eye(2 + people)[0]
    away = torch.cat([distances.new_tensor([torch.inf, SAME]), distances])
    return (-away / _SHARPNESS).softmax(0)


def _references(weights: str) -> dict[str, list[Path]]:
    """Pictures by person, in alphabetical order."""
    root = Path(weights)
    if not weights or not root.is_dir():
        missing = f"there is no folder {weights}; " if weights else "whose? "
        raise ExpungeError(
            f"faces: {missing}write faces: and a folder with a folder of pictures for each person"
        )
    people = {place.name: _visible(place) for place in _visible(root) if place.is_dir()}
    if not people:
        raise ExpungeError(f"{root}: no person in it; make a folder of pictures for each person")
    for person, files in people.items():
        if person in (NO_FACE, UNKNOWN):
            raise ExpungeError(f"{root / person}: no person can be called {person!r}; rename it")
        if not files:
            raise ExpungeError(f"{root / person}: no picture in it; add pictures of this person")
    return people


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _opened(file: Path) -> Image.Image:
    """A reference picture, rotated as its EXIF data say."""
    try:
        return ImageOps.exif_transpose(Image.open(file)).convert("RGB")
    except Exception as error:
        raise ExpungeError(f"{file}: no readable picture: {reason(error)}") from None
