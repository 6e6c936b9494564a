"""CLIP with weights of the user: how well texts fit pictures, features, zero-shot classes.

Radford et al., "Learning transferable visual models from natural language supervision", ICML
2021. Hessel et al., "CLIPScore", EMNLP 2021, without their factor of 2.5 and their cut at 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from expunge.detectors.base import Identity, Images
from expunge.detectors.weights import (
    checked,
    device,
    fingerprint,
    in_batches,
    pretrained,
    trained_model,
)
from expunge.errors import ExpungeError
from expunge.sentences import fill

SCALE = 100.0
"""Factor of cosines, in scores and before a softmax: the published models' own, rounded."""
TEMPLATE = "a photo of the {}"


class Clip:
    """An ``Extractor`` and an ``ImageText``; features are the projected ones, not normalised."""

    def __init__(self, model: Any, processor: Any, tokenizer: Any, name: str) -> None:
        self._model, self._processor, self._tokenizer = model, processor, tokenizer
        self.identity = Identity(name=name, version="", sha256=fingerprint(model))

    @property
    def width(self) -> int:
        """Of the features."""
        width: int = self._model.config.projection_dim
        return width

    def features(self, pictures: Images) -> Tensor:
        """``[pictures, width]``, float32."""
        return in_batches(pictures, self._embedded, self.identity.name)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """``[texts, width]``, float32; a text is cut where CLIP's context ends, at 77 tokens."""
        tokens = self._tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self._model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).to(device(self._model))
        with torch.no_grad():
            rows: Tensor = self._model.get_text_features(**tokens).pooler_output
        return checked(rows, len(texts), self.identity.name)

    def scores(self, pictures: Images, texts: Sequence[str]) -> Tensor:
        """100 times the cosine of each picture with its own text, ``[pictures]``, unclamped.

        Raises:
            ExpungeError: there is no picture, or not one text for each.
        """
        if len(pictures) != len(texts):
            raise ExpungeError(f"{len(pictures)} pictures but {len(texts)} texts; give one each")
        images = self.features(pictures)
        unique = list(dict.fromkeys(texts))
        places = {text: place for place, text in enumerate(unique)}
        rows = self.text_features(unique)[[places[text] for text in texts]]
        return SCALE * (normalize(images) * normalize(rows)).sum(-1)

    def zero_shot(self, labels: Sequence[str], template: str = TEMPLATE) -> "ZeroShot":
        """A classifier that chooses among ``labels``, each put into ``template``.

        With the ten classes of CIFAR-10 it is the judge of MACE's objects (Lu et al., CVPR 2024).

        Raises:
            ExpungeError: fewer than two labels, a duplicate, or no {} in the template.
        """
        if len(labels) < 2 or len(set(labels)) < len(labels):
            raise ExpungeError(f"{', '.join(labels)}: give at least two labels, each once")
        texts = [fill(template, label) for label in labels]
        return ZeroShot(self, tuple(labels), self.text_features(texts))

    def embedded(self, colours: Tensor) -> Tensor:
        """Features ``[pictures, width]`` of ``[pictures, 3, h, w]`` in -1..1, with gradients.

        Resized and scaled as the processor does, but for the rounding to bytes.
        """
        own = self._processor
        size = own.crop_size["height"], own.crop_size["width"]
        sized = interpolate(colours.float(), size, mode="bicubic", antialias=True)
        mean, deviation = (
            torch.tensor(values, device=sized.device).view(1, -1, 1, 1)
            for values in (own.image_mean, own.image_std)
        )
        pixels = ((sized + 1) / 2 - mean) / deviation
        rows: Tensor = self._model.get_image_features(pixels).pooler_output
        return rows

    def _embedded(self, pictures: Images) -> Tensor:
        inputs = self._processor(images=list(pictures), return_tensors="pt")
        pixels = inputs["pixel_values"].to(device(self._model))
        rows: Tensor = self._model.get_image_features(pixels).pooler_output
        return rows


@dataclass(frozen=True, eq=False)
class ZeroShot:
    """A ``Classifier``: the softmax of 100 times the cosines with the labels' texts."""

    clip: Clip
    labels: tuple[str, ...]
    prototypes: Tensor
    """Features of the labels' texts, ``[labels, width]``."""

    @property
    def identity(self) -> Identity:
        return self.clip.identity

    def probabilities(self, pictures: Images) -> Tensor:
        """``[pictures, labels]``, float32, rows that add up to 1."""
        return prototype_probabilities(self.clip.features(pictures), self.prototypes)


def prototype_probabilities(features: Tensor, prototypes: Tensor) -> Tensor:
    """``softmax(100 cos)`` of ``[n, width]`` with ``[classes, width]``: ``[n, classes]``."""
    return (SCALE * normalize(features) @ normalize(prototypes).T).softmax(-1)


def build(weights: str) -> Clip:
    """``clip:`` and a folder, or a hub id that was downloaded already.

    Raises:
        ExpungeError: there is no CLIP.
    """
    if not weights:
        raise ExpungeError("which CLIP? Write clip: and a folder or a Hugging Face id after it")

    def load(place: str, name: str) -> Clip:
        from transformers import AutoImageProcessor, CLIPModel, CLIPTokenizer

        return Clip(
            trained_model(CLIPModel, place, name),
            AutoImageProcessor.from_pretrained(place, backend="pil"),
            CLIPTokenizer.from_pretrained(place),
            name,
        )

    clip: Clip = pretrained("clip", weights, load)
    return clip
