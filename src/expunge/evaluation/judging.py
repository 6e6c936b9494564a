"""From folders of pictures to judged pairs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pydantic import ValidationError
from torch import Tensor
from torch.nn.functional import cosine_similarity

from expunge.concepts import explain
from expunge.errors import ExpungeError
from expunge.evaluation.records import Pair, Picture
from expunge.evaluation.suite import Judge, Shot


class Judged(NamedTuple):
    """One model's pictures of some shots, in their order."""

    pictures: list[Picture]
    features: Tensor
    """``[shots, width]``"""
    pixels: NDArray[np.uint8]
    """``[shots, height, width, 3]``"""


def judge_all(judge: Judge, shots: Sequence[Shot], images: Mapping[str, Path]) -> Judged:
    """Judge the picture of every shot; ``images`` has its file by the number of the shot.

    Raises:
        ExpungeError: a picture is missing or broken, or the judge fails on one.
    """
    files = [images[shot.number] for shot in shots]
    opened = [_opened(file) for file in files]
    try:
        judgements = judge.judge(opened, [shot.prompt.text for shot in shots])
    except ValidationError as error:
        raise ExpungeError(
            f"{judge.name} failed on a picture in {files[0].parent}: {explain(error)}"
        ) from None
    features = judge.features(opened)
    if not len(judgements) == len(features) == len(shots) or not features.isfinite().all():
        raise ExpungeError(f"{judge.name} didn't judge every picture in {files[0].parent}")
    pictures = [
        Picture(file=file, **dict(judgement))
        for file, judgement in zip(files, judgements, strict=True)
    ]
    return Judged(pictures, features, np.stack([np.asarray(image) for image in opened]))


def _opened(file: Path) -> Image.Image:
    try:
        return Image.open(file).convert("RGB")
    except (OSError, UnidentifiedImageError):
        raise ExpungeError(
            f"{file}: no readable picture; delete it and run the evaluation again"
        ) from None


def compare(shots: Sequence[Shot], base: Judged, edited: Judged) -> list[Pair]:
    """Both models' pictures of every shot beside each other."""
    features = feature_drift(base.features, edited.features)
    pixels = pixel_drift(base.pixels, edited.pixels)
    return [
        Pair(
            group=shot.group,
            prompt=shot.prompt,
            seed=shot.seed,
            base=base.pictures[index],
            edited=edited.pictures[index],
            feature_drift=features[index],
            pixel_drift=pixels[index],
        )
        for index, shot in enumerate(shots)
    ]


def feature_drift(one: Tensor, other: Tensor) -> list[float]:
    """1 - cosine of each row of ``[n, width]`` with its fellow, 0 to 2."""
    drift: list[float] = (1 - cosine_similarity(one.double(), other.double())).clamp(min=0).tolist()
    return drift


def pixel_drift(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> list[float]:
    """Mean absolute difference of pictures ``[n, height, width, 3]``, 0 to 1."""
    difference = np.abs(one.astype(np.int16) - other.astype(np.int16))
    drift: list[float] = (difference.mean(axis=(1, 2, 3)) / 255).tolist()
    return drift
