"""The feature network of Fréchet distances, as a TorchScript file that the user has.

FID means the features of Inception-2015-12-05, 2048 wide, with a resize of its own; the published
``inception-2015-12-05.pt`` holds all of that. Nothing in a file
says which network it is, so its identity is its hash.
"""

from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from expunge.detectors.base import Identity, Images
from expunge.detectors.weights import array, existing, in_batches, ready
from expunge.errors import ExpungeError
from expunge.files import sha256


class ScriptedExtractor:
    """An ``Extractor``: a TorchScript module of uint8 pictures ``[n, 3, height, width]``."""

    def __init__(self, network: Any, identity: Identity) -> None:
        self._network, self.identity = network, identity
        names = [argument.name for argument in network.forward.schema.arguments]
        self._options = {"return_features": True} if "return_features" in names else {}

    def features(self, pictures: Images) -> Tensor:
        """``[pictures, width]``, float32.

        Raises:
            ExpungeError: the module doesn't take such pictures, or gives no rows of features.
        """
        return in_batches(pictures, self._extracted, self.identity.name)

    def _extracted(self, pictures: Images) -> Tensor:
        alike = groupby(pictures, key=lambda picture: picture.size)
        batches = [torch.stack([array(picture) for picture in group]) for _, group in alike]
        device = next((one.device for one in self._network.parameters()), torch.device("cpu"))
        try:
            parts = [self._network(batch.to(device), **self._options) for batch in batches]
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise ExpungeError(f"{self.identity.name} failed on a picture ({reason})") from None
        if any(not isinstance(part, Tensor) or part.ndim != 2 for part in parts):
            raise ExpungeError(f"{self.identity.name} gives no rows of features")
        return torch.cat(parts)


def build(weights: str) -> ScriptedExtractor:
    """``inception:`` and a TorchScript file.

    Raises:
        ExpungeError: there is no such file.
    """
    file = existing("inception", weights, "a TorchScript file, e.g. inception-2015-12-05.pt")
    try:
        script = torch.jit.load(str(file), map_location="cpu")  # type: ignore[no-untyped-call]
        network = ready(script)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ExpungeError(f"inception:{file}: no TorchScript file ({reason})") from None
    identity = Identity(name=f"inception:{file.name}", version="", sha256=sha256(file))
    return ScriptedExtractor(network, identity)
