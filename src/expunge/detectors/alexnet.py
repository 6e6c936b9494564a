"""AlexNet's convolutions with weights of the user: the trunk of LPIPS.

Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014, with the
weights and names of torchvision's ``alexnet``. Scaling as in Zhang et al., "The unreasonable
effectiveness of deep features as a perceptual metric", CVPR 2018.
"""

import torch
from torch import Tensor, nn

from expunge.detectors.base import Identity
from expunge.detectors.weights import device, existing, ready, tensors
from expunge.errors import ExpungeError
from expunge.files import sha256

SMALLEST = 31
"""Pixels of the smallest side that the five layers take."""
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_TAKEN = (1, 4, 7, 9, 11)  # the five rectifiers


class AlexNet:
    """Maps of the five layers, differentiable in the pictures."""

    def __init__(self, trunk: nn.Sequential, identity: Identity) -> None:
        self._trunk, self.identity = trunk, identity

    def layers(self, pixels: Tensor) -> list[Tensor]:
        """``[n, 3, height, width]`` in 0..1 -> five times ``[n, channels, h, w]``.

        Raises:
            ExpungeError: the pictures are too small.
        """
        if min(pixels.shape[-2:]) < SMALLEST:
            raise ExpungeError(f"AlexNet takes pictures of {SMALLEST} pixels or more on each side")
        where = device(self._trunk)
        shift = torch.tensor(_SHIFT, device=where)[:, None, None]
        scale = torch.tensor(_SCALE, device=where)[:, None, None]
        x, maps = (2 * pixels.to(where) - 1 - shift) / scale, []
        for number, layer in enumerate(self._trunk):
            x = layer(x)
            if number in _TAKEN:
                maps.append(x)
        return maps


def trunk() -> nn.Sequential:
    """The convolutions up to the fifth rectifier, with random weights."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, 4, 2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
    )


def build(weights: str) -> AlexNet:
    """``alexnet:`` and a state dict in torchvision's format.

    Raises:
        ExpungeError: there is no such file, or it isn't AlexNet's.
    """
    file = existing("alexnet", weights, "torchvision's state dict, .pth or .safetensors")
    network, found = trunk(), tensors(file)
    own = {name: f"features.{name}" for name in network.state_dict()}
    if not isinstance(found, dict) or (lost := [n for n in own.values() if n not in found]):
        what = f"no {lost[0]} in it" if isinstance(found, dict) else "no state dict"
        raise ExpungeError(f"alexnet:{file}: not torchvision's AlexNet ({what})")
    try:
        network.load_state_dict({name: found[theirs] for name, theirs in own.items()})
    except RuntimeError:
        raise ExpungeError(f"alexnet:{file}: weights of another shape than AlexNet's") from None
    identity = Identity(name="alexnet", version="", sha256=sha256(file))
    return AlexNet(ready(network), identity)
