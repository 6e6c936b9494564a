"""The numbers of a network that lie in a file, and layers that read theirs with each use."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from expunge.models import hashing
from expunge.tensors import Unread


class Numbers:
    """The numbers of a network by name, in a precision and on a device.

    A network reads them each time, so that on the CPU it takes the memory of one tensor. Elsewhere
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
        return self.tensors[name].to(self.device, self.dtype)

    def mapped(self, name: str) -> Tensor:
        """The same without a copy, if possible; whoever uses it calls ``check`` afterwards.

        Raises:
            ExpungeError: the file was changed.
        """
        if name in self._there:
            return self._there[name]
        value = self.tensors.mapped(name).to(self.device, self.dtype)
        if self.device.type != "cpu":
            self._there[name] = value
        return value

    def check(self) -> None:
        """Check that nobody has written into the file.

        Raises:
            ExpungeError: somebody has.
        """
        self.tensors.check()

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
        return self.numbers.mapped(self.prefix + name)


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
    """A table."""

    def forward(self, ids: Tensor) -> Tensor:
        """Rows of numbers ``[...]``, ``[..., width]``."""
        return functional.embedding(ids, self.read("weight"))


class Conv2d(Layer, nn.Conv2d):
    """A convolution, which stands for one and isn't used."""
