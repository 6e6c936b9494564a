"""Image-text models whose gradients an attack follows; another network must count its success."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from expunge.detectors.base import Identity, detector
from expunge.detectors.clip import SCALE, Clip
from expunge.detectors.emoji import SIZE, Judges, tokenize
from expunge.errors import ExpungeError


class Critic(Protocol):
    """How well texts fit pictures, with gradients for the pictures."""

    @property
    def identity(self) -> Identity: ...

    def fit(self, colours: Tensor, texts: Sequence[str]) -> Tensor:
        """100 times the cosine of each picture with each text, ``[pictures, texts]``.

        ``colours`` are ``[pictures, 3, height, width]`` in -1..1.
        """
        ...

    def features(self, colours: Tensor) -> Tensor:
        """Of each picture, ``[pictures, width]`` of length 1; alike where pictures are alike."""
        ...


class EmojiCritic:
    """The bundled image-text model."""

    def __init__(self, judges: Judges) -> None:
        self._judges = judges
        self.identity = judges.identity.model_copy(update={"name": "emoji image-text model"})

    def fit(self, colours: Tensor, texts: Sequence[str]) -> Tensor:
        with torch.no_grad():
            rows = self._judges.image_text.text(*tokenize(self._judges.tokenizer, texts))
        return SCALE * self.features(colours) @ rows.T

    def features(self, colours: Tensor) -> Tensor:
        return self._judges.image_text.image(_sized(colours.float(), (SIZE, SIZE)))


class ClipCritic:
    """CLIP with weights of the user."""

    def __init__(self, clip: Clip) -> None:
        self._clip = clip
        self.identity = clip.identity

    def fit(self, colours: Tensor, texts: Sequence[str]) -> Tensor:
        rows = normalize(self._clip.text_features(texts))
        return SCALE * self.features(colours) @ rows.T.to(colours.device)

    def features(self, colours: Tensor) -> Tensor:
        return normalize(self._clip.embedded(colours))


def _sized(colours: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(colours.shape[-2:]) == size:
        return colours
    return interpolate(colours, size, mode="bicubic", antialias=True, align_corners=False)


KINDS: Mapping[type, Callable[[object], Critic]] = {Judges: EmojiCritic, Clip: ClipCritic}  # type: ignore[dict-item]


def critic(name: str) -> Critic:
    """The critic on the network of a detector: ``emoji``, or ``clip:FOLDER``.

    Raises:
        ExpungeError: there is no such detector, or no text can be compared with its pictures.
    """
    found = detector(name)
    for kind, built in KINDS.items():
        if isinstance(found, kind):
            return built(found)
    raise ExpungeError(f"{name}: no image-text model with gradients; give emoji, or clip:FOLDER")
