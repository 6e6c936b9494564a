"""Training a classifier of pictures on frozen features, in minutes on a CPU.

Papers that erase artists' styles train their own classifier, e.g. a ResNet-18 for SepME.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import LBFGS

from expunge.detectors.base import Extractor
from expunge.detectors.trained import (
    ClassifierRecord,
    TrainedClassifier,
    accuracy_by_class,
    extractor,
    predict,
)
from expunge.detectors.weights import BATCH
from expunge.errors import ExpungeError
from expunge.files import digest, sha256
from expunge.progress import track
from expunge.seeding import generator

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
HELD_OUT = 0.2
PENALTY = 0.01
_ITERATIONS = 1000
_FLAT = 1e-7  # slope at which a minimum is found


@dataclass(frozen=True)
class Labelled:
    """The pictures of each class, without duplicates, by the SHA-256 of their files."""

    pictures: Mapping[str, Mapping[str, Path]]

    @property
    def sha256(self) -> str:
        """Hash of the classes and their pictures; file names don't matter."""
        return digest({name: sorted(files) for name, files in self.pictures.items()})

    @classmethod
    def load(cls, folder: Path) -> "Labelled":
        """A folder with a folder of pictures for each class.

        Raises:
            ExpungeError: there are fewer than two classes, one has fewer than two different
                pictures, or two share a picture.
        """
        if not folder.is_dir():
            raise ExpungeError(f"{folder}: no such folder; give one with a folder for each class")
        inside = sorted(folder.iterdir())
        places = [place for place in inside if place.is_dir() and not place.name.startswith(".")]
        if len(places) < 2:
            raise ExpungeError(
                f"{folder}: {len(places)} classes in it; a classifier needs at least two, a folder "
                "of pictures for each"
            )
        pictures = {place.name: _by_content(place) for place in places}
        seen: dict[str, Path] = {}
        for files in pictures.values():
            for content, file in files.items():
                if content in seen:
                    raise ExpungeError(
                        f"{seen[content]} and {file} are the same picture; it can't be of two "
                        "classes"
                    )
                seen[content] = file
        return cls(pictures)


def _by_content(folder: Path) -> dict[str, Path]:
    files = [
        file
        for file in sorted(folder.iterdir())
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    ]
    found = {sha256(file): file for file in files}
    if len(found) < 2:
        raise ExpungeError(
            f"{folder}: {len(found)} different pictures in it; a class needs at least two, "
            "to learn from and to check with"
        )
    return dict(sorted(found.items()))


def train(
    labelled: Labelled, backbone: str = "efficientnet", *, penalty: float = PENALTY, seed: int = 0
) -> TrainedClassifier:
    """Logistic regression on four fifths of the pictures, checked on the last fifth.

    Args:
        labelled: the pictures.
        backbone: a detector that gives features, e.g. ``clip:FOLDER``.
        penalty: penalty on the squared weights, against overfitting.
        seed: decides which fifth of each class is held out.

    Raises:
        ExpungeError: a picture can't be read, the backbone gives no features, or the penalty isn't
            positive.
    """
    if not penalty > 0:
        raise ExpungeError(f"penalty {penalty}: must be above 0, or the weights grow without end")
    network, classes = extractor(backbone), tuple(labelled.pictures)
    files = [file for pictures in labelled.pictures.values() for file in pictures.values()]
    counts = [len(pictures) for pictures in labelled.pictures.values()]
    labels = torch.repeat_interleave(torch.arange(len(classes)), torch.tensor(counts))
    held_out = torch.cat(
        [_held_out(name, n, seed) for name, n in zip(classes, counts, strict=True)]
    )
    features = torch.cat(list(_features(network, files)))
    weight, bias = fit(features[~held_out], labels[~held_out], len(classes), penalty)
    seen = predict(weight, bias, features[held_out])
    record = ClassifierRecord(
        classes=classes,
        learnt_from=tuple(torch.bincount(labels[~held_out]).tolist()),
        held_out=accuracy_by_class(seen, labels[held_out], len(classes)),
        data=labelled.sha256,
        backbone=backbone,
        backbone_identity=network.identity,
        penalty=penalty,
        seed=seed,
        versions={name: version(name) for name in ("expunge", "torch")},
    )
    return TrainedClassifier(record, weight, bias)


def _held_out(name: str, count: int, seed: int) -> Tensor:
    """Which pictures of a class are held out, ``[count]`` of booleans."""
    order = torch.randperm(count, generator=generator(seed, "held out", name))
    return order < max(1, round(HELD_OUT * count))


def _features(network: Extractor, files: Sequence[Path]) -> Iterator[Tensor]:
    starts = range(0, len(files), BATCH)
    for start in track(starts, "looking at pictures", total=len(starts)):
        yield network.features([_opened(file) for file in files[start : start + BATCH]])


def _opened(file: Path) -> Image.Image:
    try:
        return Image.open(file).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise ExpungeError(f"{file}: no readable picture; mend or delete it") from None


def fit(features: Tensor, labels: Tensor, classes: int, penalty: float) -> tuple[Tensor, Tensor]:
    """The weights ``[classes, d]`` and biases ``[classes]`` of a regularised logistic regression.

    On features ``[n, d]``, scaled to mean 0 and variance 1, it minimises the mean cross-entropy
    plus ``penalty / 2 |weights|^2``. There is one minimum, so nothing is random. The scaling is
    then merged into the weights.

    Raises:
        ExpungeError: it found no minimum.
    """
    x = features.double()
    centre, spread = x.mean(0), x.std(0, correction=0)
    spread = torch.where(spread > 0, spread, 1.0)
    x = (x - centre) / spread
    w = torch.zeros(classes, x.shape[1], dtype=x.dtype, requires_grad=True)
    b = torch.zeros(classes, dtype=x.dtype, requires_grad=True)
    search = LBFGS(
        [w, b],
        max_iter=_ITERATIONS,
        tolerance_grad=_FLAT,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        search.zero_grad()
        value = cross_entropy(x @ w.T + b, labels) + penalty / 2 * w.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    search.step(loss)  # type: ignore[no-untyped-call]
    steepest = max(float(p.grad.abs().max()) for p in (w, b) if p.grad is not None)
    if not steepest <= 100 * _FLAT:
        raise ExpungeError(
            f"the training found no minimum (a slope of {steepest:.1e} is left); raise the penalty"
        )
    weight = w.detach() / spread
    return weight.float(), (b.detach() - weight @ centre).float()
