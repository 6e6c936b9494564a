"""The numbers of a network that lie in a file, and layers that read theirs with each use."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from expunge.models import hashing
from expunge.tensors import Unread


class Numbers:
    """The numbers of a network by name, in a precision and on a device.

    On the CPU they are read each time, so that a network takes the memory of one tensor. Elsewhere
    they are read once.
    """

    def __init__(self, tensors: Unread, dtype: torch.dtype, device: torch.device) -> None:
        self.tensors, self.dtype, self.device = tensors, dtype, device
        self._there: dict[str, Tensor] = {}

    def __call__(self, name: str) -> Tensor:
        """One tensor.

        Raises:
            ExpungeError: the file was changed.
        """
        if name in self._there:
            self.tensors.check()
            return self._there[name]
        value = self.tensors[name].to(self.device, self.dtype)
        if self.device.type != "cpu":
            self._there[name] = value
        return value

    def rows(self, name: str, rows: Sequence[int]) -> Tensor:
        """Some rows of a tensor, and nothing else of it.

        Raises:
            ExpungeError: the file was changed.
        """
        return self.tensors.rows(name, rows).to(self.device, self.dtype)

    @property
    def stamp(self) -> str:
        """What tells them from others without reading them; empty if only that does.

        Raises:
            ExpungeError: the file was changed.
        """
        stamp = self.tensors.stamp if self.tensors.size >= hashing.MUCH else ""
        return stamp and f"{stamp}-{self.dtype}"


class Layer(nn.Module):
    """A layer with parameters on the meta device; each use reads their numbers."""

    prefix: str
    numbers: Numbers

    def reset_parameters(self) -> None:
        """Leave them; torch would import all of its compiler to initialise them there."""

    def read(self, name: str) -> Tensor:
        return self.numbers(self.prefix + name)


class Linear(Layer, nn.Linear):
    """A linear layer; it has a bias."""

    def forward(self, rows: Tensor) -> Tensor:
        return functional.linear(rows, self.read("weight"), self.read("bias"))


class LayerNorm(Layer, nn.LayerNorm):
    """A norm."""

    def forward(self, rows: Tensor) -> Tensor:
        own = self.read("weight"), self.read("bias")
        return functional.layer_norm(rows, self.normalized_shape, *own, self.eps)


class Embedding(Layer, nn.Embedding):
    """A table, of which only what is looked up is read."""

    def forward(self, ids: Tensor) -> Tensor:
        """Rows of numbers ``[...]``, ``[..., width]``."""
        found, places = torch.unique(ids, return_inverse=True)
        return self.numbers.rows(f"{self.prefix}weight", found.tolist())[places]


class Conv2d(Layer, nn.Conv2d):
    """A convolution, which stands for one and isn't used."""
