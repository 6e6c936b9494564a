"""Judges for pictures of emoji: what is drawn, in which style, and how well a text fits.

Both were trained on drawings only, never on a diffusion model's pictures.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.detectors.base import Identity, Images
from expunge.detectors.packaged import only_packaged
from expunge.errors import ExpungeError
from expunge.models.emoji import pipeline_path

SIZE = 64
BATCH = 64
FOLDER = pipeline_path().parent / "judges"
NOTHING = "nothing"
"""The label of a picture without an object."""

EmojiImages = Tensor | Sequence[Image.Image]


class _Residual(nn.Module):
    """Two convolutions with a shortcut; the first one may halve the picture."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.norm2 = nn.GroupNorm(8, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.relu(self.norm1(x)))
        h = self.conv2(F.relu(self.norm2(h)))
        total: Tensor = self.shortcut(x) + h
        return total


class Trunk(nn.Module):
    """Pictures [n, 3, 64, 64] in -1..1 to features [n, widths[-1]]."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 4, 2, 1)
        self.blocks = nn.Sequential(*[_Residual(a, b, 2) for a, b in pairwise(widths)])
        self.norm = nn.GroupNorm(8, widths[-1])

    def forward(self, images: Tensor) -> Tensor:
        return F.relu(self.norm(self.blocks(self.stem(images)))).mean((2, 3))


class ClassifierNetwork(nn.Module):
    """Which object (the last class is "nothing") and which style."""

    def __init__(self, widths: Sequence[int], objects: int, styles: int) -> None:
        super().__init__()
        self.trunk = Trunk(widths)
        self.object_head = nn.Linear(widths[-1], objects + 1)
        self.style_head = nn.Linear(widths[-1], styles)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(images)
        return self.object_head(features), self.style_head(features)


class ImageTextNetwork(nn.Module):
    """A small CLIP: pictures and texts as unit vectors in one space."""

    def __init__(
        self, widths: Sequence[int], vocabulary: int, length: int, width: int, layers: int, dim: int
    ) -> None:
        super().__init__()
        self.trunk = Trunk(widths)
        self.image_projection = nn.Linear(widths[-1], dim, bias=False)
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, 0.0, F.gelu, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.text_projection = nn.Linear(width, dim, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(2.66))

    def image(self, images: Tensor) -> Tensor:
        """[n, 3, 64, 64] in -1..1 -> [n, dim]."""
        return F.normalize(self.image_projection(self.trunk(images)), dim=-1)

    def text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids [n, length], mask [n, length] true on words -> [n, dim]."""
        x = self.tokens(ids) + self.positions[: ids.shape[1]]
        x = self.norm(self.encoder(x, src_key_padding_mask=~mask))
        pooled = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return F.normalize(self.text_projection(pooled), dim=-1)


@dataclass(frozen=True)
class Classification:
    """Probabilities of every object [n, objects], every style [n, styles], and of nothing [n].

    Object probabilities and the one of nothing add up to 1.
    """

    object_probabilities: Tensor
    style_probabilities: Tensor
    nothing_probability: Tensor

    @property
    def thing_probabilities(self) -> Tensor:
        """Of every object and then of nothing, [n, objects + 1], rows that add up to 1."""
        return torch.cat([self.object_probabilities, self.nothing_probability[:, None]], dim=1)

    @property
    def objects(self) -> Tensor:
        """[n] index of the likeliest object, -1 where nothing is likelier than any."""
        best, index = self.object_probabilities.max(-1)
        return torch.where(best >= self.nothing_probability, index, -1)

    @property
    def styles(self) -> Tensor:
        """[n] index of the likeliest style."""
        return self.style_probabilities.argmax(-1)


def _pixels(images: EmojiImages) -> Tensor:
    """[n, 3, 64, 64] in -1..1, or an error that says what is wrong."""
    if len(images) == 0:
        raise ExpungeError("there are no images to judge")
    if not isinstance(images, Tensor):
        sizes = {image.size for image in images} - {(SIZE, SIZE)}
        if sizes:
            raise ExpungeError(f"the judges look at {SIZE}x{SIZE} images, not {sorted(sizes)}")
        arrays = [np.array(image.convert("RGB")) for image in images]
        images = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
    if images.dtype != torch.uint8 or tuple(images.shape[1:]) != (3, SIZE, SIZE):
        raise ExpungeError(
            f"the judges look at uint8 images [n, 3, {SIZE}, {SIZE}], "
            f"not {images.dtype} {list(images.shape)}"
        )
    return images.float().cpu() / 127.5 - 1


def _batches(rows: Tensor) -> tuple[Tensor, ...]:
    return torch.split(rows, BATCH)


@dataclass(frozen=True, eq=False)
class EmojiHead:
    """A ``Classifier`` of one attribute."""

    judges: Judges
    labels: tuple[str, ...]
    read: Callable[[Classification], Tensor]
    """Its probabilities, [n, labels]."""

    @property
    def identity(self) -> Identity:
        return self.judges.identity

    def probabilities(self, pictures: Images) -> Tensor:
        """``[pictures, labels]``, float32, rows that add up to 1."""
        return self.read(self.judges.classify(pictures))


class Judges:
    """The classifier and the image-text model, with the names of what they know: a ``MultiHead``.

    Its heads recognise styles, with or without the word "style", and objects.
    """

    def __init__(
        self,
        classifier: ClassifierNetwork,
        image_text: ImageTextNetwork,
        tokenizer: Tokenizer,
        objects: tuple[str, ...],
        styles: tuple[str, ...],
        folder: Path,
    ) -> None:
        self.classifier = classifier.eval().requires_grad_(False)
        self.image_text = image_text.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.objects = objects
        self.styles = styles
        self._folder = folder

    @cached_property
    def identity(self) -> Identity:
        total = hashlib.sha256()
        for path in sorted(path for path in self._folder.iterdir() if path.is_file()):
            total.update(path.name.encode() + b"\0" + path.read_bytes())
        return Identity(name="emoji", version="", sha256=total.hexdigest())

    @property
    def heads(self) -> tuple[EmojiHead, EmojiHead]:
        styles = tuple(f"{style}, {style} style" for style in self.styles)
        return (
            EmojiHead(self, styles, lambda seen: seen.style_probabilities),
            EmojiHead(self, (*self.objects, NOTHING), lambda seen: seen.thing_probabilities),
        )

    @torch.inference_mode()
    def classify(self, images: EmojiImages) -> Classification:
        """What is drawn, and in which style.

        images: uint8 [n, 3, 64, 64], or n PIL images of 64x64.
        """
        parts = [self.classifier(batch) for batch in _batches(_pixels(images))]
        things = torch.cat([part[0] for part in parts]).softmax(-1)
        styles = torch.cat([part[1] for part in parts]).softmax(-1)
        return Classification(things[:, :-1], styles, things[:, -1])

    @torch.inference_mode()
    def features(self, images: EmojiImages) -> Tensor:
        """[n, f] features of the classifier, for distances between pictures."""
        return torch.cat([self.classifier.trunk(b) for b in _batches(_pixels(images))])

    @torch.inference_mode()
    def clip_score(self, images: EmojiImages, prompts: Sequence[str]) -> Tensor:
        """[n] 100 x cosine of picture and prompt, 0 where it is negative."""
        pixels = _pixels(images)
        if len(pixels) != len(prompts):
            raise ExpungeError(f"{len(pixels)} images but {len(prompts)} prompts: give one each")
        pictures = torch.cat([self.image_text.image(batch) for batch in _batches(pixels)])
        unique = sorted(set(prompts))
        ids, mask = tokenize(self.tokenizer, unique)
        pieces = zip(_batches(ids), _batches(mask), strict=True)
        texts = torch.cat([self.image_text.text(*piece) for piece in pieces])
        rows = [unique.index(prompt) for prompt in prompts]
        return (100 * (pictures * texts[rows]).sum(-1)).clamp(min=0)


def tokenize(tokenizer: Tokenizer, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Token numbers [n, length] and where they are words [n, length]."""
    encoded = tokenizer.encode_batch(list(prompts))
    ids = torch.tensor([entry.ids for entry in encoded])
    return ids, torch.tensor([entry.attention_mask for entry in encoded]).bool()


@lru_cache(maxsize=1)
def load_judges(folder: Path = FOLDER) -> Judges:
    """The judges that ship with the model."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    objects, styles = tuple(config["objects"]), tuple(config["styles"])
    classifier = ClassifierNetwork(config["classifier"]["widths"], len(objects), len(styles))
    image_text = ImageTextNetwork(**config["image_text"])
    for model, name in ((classifier, "classifier"), (image_text, "image_text")):
        weights = load_file(folder / f"{name}.safetensors")
        model.load_state_dict({key: value.float() for key, value in weights.items()})
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return Judges(classifier, image_text, tokenizer, objects, styles, folder)


def build(weights: str = "") -> Judges:
    """``emoji``: the judges that ship with the model.

    Raises:
        ExpungeError: weights were given.
    """
    only_packaged("emoji", weights)
    return load_judges()
