"""Classifiers of pictures from transformers: ResNet-50 of ImageNet, a ViT of artists, and so on.

GIPHY's detector of celebrities is a program for an old Python; any classifier of faces that was
saved with transformers, or trained with ``expunge train-classifier``, takes its place.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from expunge.detectors.base import Identity, Images
from expunge.detectors.weights import device, fingerprint, in_batches, pretrained, trained_model
from expunge.errors import ExpungeError
from expunge.spelling import spelling


class ImageClassifier:
    """A ``Classifier`` with its own preprocessing; ``labels`` are in the order of its classes."""

    def __init__(self, model: Any, processor: Any, name: str) -> None:
        if model.config.problem_type == "multi_label_classification":
            raise ExpungeError(f"{name}: its labels don't exclude each other; no classifier of one")
        self._model, self._processor = model, processor
        names = model.config.id2label
        self.labels = tuple(str(names[index]) for index in range(len(names)))
        self.identity = Identity(name=name, version="", sha256=fingerprint(model))

    def probabilities(self, pictures: Images) -> Tensor:
        """``[pictures, labels]``, float32, rows that add up to 1."""
        return in_batches(pictures, self._classified, self.identity.name)

    def _classified(self, pictures: Images) -> Tensor:
        inputs = self._processor(images=list(pictures), return_tensors="pt")
        logits: Tensor = self._model(inputs["pixel_values"].to(device(self._model))).logits
        return logits.softmax(-1)


def build(weights: str) -> ImageClassifier:
    """``classifier:`` and a folder, or a hub id that was downloaded already.

    Raises:
        ExpungeError: there is no trained classifier of pictures.
    """
    if not weights:
        raise ExpungeError(
            "which classifier? Write classifier: and a folder or a Hugging Face id after it"
        )

    def load(place: str, name: str) -> ImageClassifier:
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        return ImageClassifier(
            trained_model(AutoModelForImageClassification, place, name),
            AutoImageProcessor.from_pretrained(place, backend="pil"),
            name,
        )

    classifier: ImageClassifier = pretrained("classifier", weights, load)
    return classifier


def class_index(labels: Sequence[str], label: str | int) -> int:
    """The index of a class, given by its index, its label, or a name in its label.

    ImageNet has two classes "crane" and lists several names for most, as in "tench, Tinca tinca".

    Raises:
        ExpungeError: there is none, or more than one; then give the index.
    """
    if isinstance(label, int):
        if 0 <= label < len(labels):
            return label
        raise ExpungeError(f"there is no class {label}, only 0 to {len(labels) - 1}")
    wanted = spelling(label)
    whole = [i for i, one in enumerate(labels) if spelling(one) == wanted]
    found = whole or [i for i, one in enumerate(labels) if wanted in _names(one)]
    if not found:
        raise ExpungeError(f"the classifier has no class {label!r}")
    if len(found) > 1:
        places = " and ".join(map(str, found))
        raise ExpungeError(f"the classes {places} are all called {label!r}; give the index instead")
    return found[0]


def _names(label: str) -> list[str]:
    return [spelling(name) for name in label.split(",")]


def top(probabilities: Tensor, k: int) -> Tensor:
    """``[n, k]`` indices of the likeliest of ``[n, labels]``, the likeliest first.

    Raises:
        ExpungeError: ``k`` isn't from 1 to the number of labels.
    """
    if not 1 <= k <= probabilities.shape[1]:
        raise ExpungeError(f"top {k} of {probabilities.shape[1]} labels; k counts from 1 to all")
    return probabilities.topk(k).indices
