"""Classifiers of ``expunge train-classifier``: a linear head on a frozen network's features."""

import json
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from expunge.concepts import explain
from expunge.detectors.base import Extractor, Identity, Images, detector
from expunge.detectors.weights import checked, existing
from expunge.errors import ExpungeError
from expunge.files import sha256
from expunge.statistics.rates import Rate
from expunge.tensors import read, write

SUFFIX = ".safetensors"
HEADER = "expunge.classifier"
"""Entry of the safetensors header that holds the record."""


class ClassifierRecord(BaseModel):
    """Where a trained classifier comes from and how good it is."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    classes: tuple[str, ...] = Field(min_length=2)
    learnt_from: tuple[int, ...]
    """Pictures of each class."""
    held_out: tuple[Rate, ...]
    """Held-out pictures of each class that it recognised."""
    data: str
    """SHA-256 of the classes and their pictures."""
    backbone: str
    """Name of the network whose features it uses."""
    backbone_identity: Identity
    penalty: float = Field(gt=0)
    seed: int
    """Seed of the choice of held-out pictures."""
    versions: dict[str, str]

    @property
    def accuracy(self) -> Rate:
        """Accuracy on all held-out pictures."""
        known = sum(rate.successes for rate in self.held_out)
        return Rate(known, sum(rate.n for rate in self.held_out))


class TrainedClassifier:
    """A ``Classifier``.

    Args:
        record: where it comes from.
        weight: ``[classes, width]`` float32.
        bias: ``[classes]`` float32.
        backbone: gives the features; by default the one that the record names.
        sha256: of the file it was loaded from.

    Raises:
        ExpungeError: the backbone isn't the one of the training, or the head doesn't fit to it.
    """

    def __init__(
        self,
        record: ClassifierRecord,
        weight: Tensor,
        bias: Tensor,
        *,
        backbone: str = "",
        sha256: str = "",
    ) -> None:
        self.record, self.weight, self.bias = record, weight, bias
        self._extractor = extractor(backbone or record.backbone)
        if self._extractor.identity.sha256 != record.backbone_identity.sha256:
            raise ExpungeError(
                f"the classifier was trained on {record.backbone_identity.name}, and "
                f"{self._extractor.identity.name} has other weights"
            )
        if weight.ndim != 2 or not len(weight) == len(record.classes) == len(bias.flatten()):
            raise ExpungeError(
                f"weights of shape {tuple(weight.shape)} for {len(record.classes)} classes"
            )
        self.identity = Identity(name="trained", version="", sha256=sha256)

    @property
    def labels(self) -> tuple[str, ...]:
        return self.record.classes

    def probabilities(self, pictures: Images) -> Tensor:
        """``[pictures, labels]``, float32, rows that add up to 1."""
        features = self._extractor.features(pictures)
        rows = (features @ self.weight.T + self.bias).softmax(-1)
        return checked(rows, len(pictures), self.identity.name)

    def save(self, path: Path) -> None:
        """Write the head and the record, not the backbone."""
        record = self.record.model_dump(mode="json")
        write(path, HEADER, record, {"weight": self.weight, "bias": self.bias})


def build(weights: str) -> TrainedClassifier:
    """``trained:FILE``, or ``trained:FILE@BACKBONE`` if its backbone is elsewhere now.

    Raises:
        ExpungeError: there is no such classifier, or its backbone can't be loaded.
    """
    name, moved, backbone = weights.partition(f"{SUFFIX}@")
    place = f"{name}{SUFFIX}" if moved else weights
    file = existing("trained", place, f"a {SUFFIX} file of expunge train-classifier")
    found = read(file, HEADER, "classifier")
    try:
        record = ClassifierRecord.model_validate_json(json.dumps(found.record))
        weight, bias = found.tensors["weight"], found.tensors["bias"]
    except ValidationError as error:
        raise ExpungeError(f"{file}: wrong record: {explain(error)}") from None
    except KeyError as error:
        raise ExpungeError(f"{file}: lacks the tensor {error}; the file is damaged") from None
    return TrainedClassifier(record, weight, bias, backbone=backbone, sha256=sha256(file))


def extractor(name: str) -> Extractor:
    """The detector of this name that gives features.

    Raises:
        ExpungeError: it gives none.
    """
    found = detector(name)
    if not isinstance(found, Extractor):
        raise ExpungeError(
            f"{name} gives no features of pictures; take efficientnet or clip:FOLDER"
        )
    return found


def accuracy_by_class(predicted: Tensor, labels: Tensor, classes: int) -> tuple[Rate, ...]:
    """Accuracy for each class, from predicted and true class numbers ``[n]``."""
    right = predicted == labels
    return tuple(Rate.of(right[labels == number].tolist()) for number in range(classes))


def predict(weight: Tensor, bias: Tensor, features: Tensor) -> Tensor:
    """Numbers of the likeliest classes, ``[n]``."""
    return torch.argmax(features @ weight.T + bias, -1)
