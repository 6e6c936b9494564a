"""How different two pictures look: distances between the maps of a network's layers.

Zhang et al., "The unreasonable effectiveness of deep features as a perceptual metric", CVPR 2018:
LPIPS is the distance in AlexNet's maps under weights fitted to what people see. In other maps,
without such weights, the distance has another scale and its own name.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from expunge.detectors.base import Identity, Images, detector
from expunge.detectors.packaged import folder
from expunge.detectors.weights import array, checked, tensors
from expunge.errors import ExpungeError
from expunge.registry import Registry

Layers = Callable[[Tensor], Sequence[Tensor]]
"""Pictures ``[n, 3, height, width]`` in 0..1 -> a few ``[n, channels, h, w]``."""
_TINY = 1e-8  # keeps the gradient finite where all channels are 0


@dataclass(frozen=True, eq=False)
class PerceptualDistance:
    """A distance between pictures of one size, 0 for equal ones."""

    name: str
    identity: Identity
    """Identity of the trunk."""
    layers: Layers
    weights: tuple[Tensor, ...] | None = None
    """A weight for each channel of each layer; ``None`` weighs all 1."""
    size: int | None = None
    """Pictures are first resized to squares of this size."""

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """``[n]`` distances of pictures ``[n, 3, height, width]`` in 0..1; differentiable."""
        return layer_distance(self.layers(first), self.layers(second), self.weights)

    def between(self, first: Images, second: Images) -> Tensor:
        """Distances of picture i of one list from picture i of the other, ``[pictures]`` float32.

        Raises:
            ExpungeError: the lists are empty, or differ in length or in the sizes of pictures, or
                a distance isn't finite.
        """
        if not first or len(first) != len(second):
            raise ExpungeError(f"{len(first)} and {len(second)} pictures are no pairs")
        with torch.no_grad():
            pairs = [self._pair(*pair) for pair in zip(first, second, strict=True)]
        return checked(torch.cat(pairs), len(first), self.name)

    def _pair(self, first: Image.Image, second: Image.Image) -> Tensor:
        if self.size is None and first.size != second.size:
            raise ExpungeError(
                f"pictures of {first.size} and {second.size} pixels can't be compared; "
                "give the distance a size"
            )
        return self(self._pixels(first), self._pixels(second))

    def _pixels(self, picture: Image.Image) -> Tensor:
        if self.size is not None:
            square = (self.size, self.size)
            picture = picture.convert("RGB").resize(square, Image.Resampling.BICUBIC)
        return array(picture)[None] / 255


def layer_distance(
    first: Sequence[Tensor], second: Sequence[Tensor], weights: Sequence[Tensor] | None = None
) -> Tensor:
    """``sum_l mean_hw sum_c w_lc (a_lc - b_lc)^2``, the channels at each place of unit length.

    Maps ``[n, channels, h, w]`` and weights ``[channels]`` of each layer -> ``[n]``.
    """
    total = torch.zeros((), device=first[0].device)
    for number, (a, b) in enumerate(zip(first, second, strict=True)):
        gap = (_unit(a) - _unit(b)).square()
        if weights is not None:
            gap = gap * weights[number].to(gap.device)[:, None, None]
        total = total + gap.sum(1).mean((1, 2))
    return total


def _unit(maps: Tensor) -> Tensor:
    return maps / (maps.square().sum(1, keepdim=True) + _TINY).sqrt()


def perceptual(name: str, *, size: int | None = None) -> PerceptualDistance:
    """``alexnet:FILE`` with torchvision's AlexNet is LPIPS; ``efficientnet`` needs no file.

    Args:
        name: the trunk.
        size: compare squares of this many pixels; ESD and RECE print LPIPS at 64.

    Raises:
        ExpungeError: there is none of this name, its weights or package are missing, or the size
            isn't positive.
    """
    if size is not None and size < 1:
        raise ExpungeError(f"pictures of {size} pixels; give a size from 1 up")
    kind, _, weights = name.partition(":")
    return PERCEPTUAL.get(kind)(weights, size)


def lpips(weights: str, size: int | None = None) -> PerceptualDistance:
    """LPIPS, AlexNet, version 0.1.

    Raises:
        ExpungeError: the trunk's file can't be read, or torchmetrics isn't installed.
    """
    trunk = detector(f"alexnet:{weights}")
    name = _sized("LPIPS (AlexNet, 0.1", size)
    return PerceptualDistance(name, trunk.identity, trunk.layers, fitted_weights(), size)


def efficientnet(weights: str = "", size: int | None = None) -> PerceptualDistance:
    """The unweighted distance in EfficientNet-Lite0's maps.

    Raises:
        ExpungeError: its package isn't installed, or weights are named, which it has of its own.
    """
    trunk = detector(f"efficientnet:{weights}")
    name = _sized("perceptual distance (EfficientNet-Lite0", size)
    return PerceptualDistance(name, trunk.identity, trunk.layers, size=size)


PERCEPTUAL: Registry[Callable[[str, int | None], PerceptualDistance]] = Registry(
    "perceptual distance",
    {
        "alexnet": "expunge.detectors.perceptual:lpips",
        "efficientnet": "expunge.detectors.perceptual:efficientnet",
    },
)


def fitted_weights() -> tuple[Tensor, ...]:
    """LPIPS 0.1's weights for AlexNet's channels, from torchmetrics.

    Raises:
        ExpungeError: torchmetrics isn't installed, or keeps them elsewhere.
    """
    # Found, not imported: the import takes seconds.
    file = folder("torchmetrics", "eval") / "functional/image/lpips_models/alex.pth"
    found: Mapping[str, Tensor] = tensors(file)
    return tuple(found[f"lin{number}.model.1.weight"].flatten() for number in range(5))


def _sized(name: str, size: int | None) -> str:
    return f"{name})" if size is None else f"{name}, {size} pixels)"
