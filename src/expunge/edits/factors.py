"""Thin factors of layers: what they make of inputs, and weights that contain them."""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear


class PerPromptWeights:
    """A whole weight of a layer for each prompt, where the factors together are no longer thin."""

    def __init__(self, up: Tensor, down: Tensor, runs: Sequence[tuple[int, Tensor]]) -> None:
        """``runs`` hold how many successive prompts open equally, and how far, ``[rank]``."""
        self.up, self.down = up, down
        self.counts = [count for count, _ in runs]
        self.opened = [row for _, row in runs]
        self.weights: list[Tensor] = []
        """Weights of the layer, one for each run."""

    def __call__(self, inputs: Tensor) -> Tensor:
        parts = zip(torch.split(inputs, self.counts), self.opened, strict=True)
        return torch.cat(
            [through(part, (self.down.T, row[:, None] * self.up.T)) for part, row in parts]
        )

    def whole(self, module: nn.Module, inputs: Tensor) -> Tensor:
        assert isinstance(module, nn.Linear | nn.Conv2d)
        if not self.weights:
            base = module.weight
            changes = (self.up * row @ self.down for row in self.opened)
            self.weights = [base + change.to(base).reshape(base.shape) for change in changes]
        layer = linear if isinstance(module, nn.Linear) else conv2d
        parts = zip(torch.split(inputs, self.counts), self.weights, strict=True)
        return torch.cat([layer(part, weight, module.bias) for part, weight in parts])


def are_thin(up: Tensor, down: Tensor) -> bool:
    """Whether two products with the factors cost less than a quarter of one with the weight."""
    out, into = len(up), down.shape[1]
    return 4 * len(down) * (out + into) < out * into


def through(inputs: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """``inputs`` times the factors, one after the other, as a layer would compute it.

    ``inputs`` are those of a linear layer, ``[batch, n, in]``, or of a convolution, ``[batch, in,
    height, width]``; factors are ``[in, rank]`` and ``[rank, out]``, or one for each of the batch.
    """
    if inputs.ndim != 4:
        return reduce(torch.matmul, factors, inputs)
    added = reduce(torch.matmul, factors, inputs.flatten(2).mT).mT
    return added.reshape(*added.shape[:2], *inputs.shape[2:])
