"""A feature network that is done at once: the mean and the spread of each colour."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from expunge.detectors import Identity


class Backbone:
    def __init__(self, weights: str = "") -> None:
        self.identity = Identity(name="toy", version="1", sha256=weights or "0")

    def features(self, pictures: Sequence[Image.Image]) -> Tensor:
        arrays = [np.asarray(picture, np.float32).reshape(-1, 3) / 255 for picture in pictures]
        rows = [np.concatenate([a.mean(0), a.std(0), [1]]) for a in arrays]
        return torch.from_numpy(np.stack(rows)).float()


class Blind:
    """A detector that gives no features."""

    def __init__(self, weights: str = "") -> None:
        self.identity = Identity(name="blind", version="1", sha256="1")
