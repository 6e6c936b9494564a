"""What a denoiser is told of its prompts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

Index = slice | Sequence[int] | Tensor
"""Which prompts of a batch: a slice, their numbers, or a mask ``[batch]``."""


@dataclass(frozen=True, eq=False)
class Condition:
    """All that a denoiser is told of a batch of prompts; every tensor has a row a prompt."""

    rows: Tensor
    """The text encoder's output, ``[batch, tokens, width]``: what cross-attention looks at."""
    pooled: Tensor | None = None
    """One vector of the whole prompt, ``[batch, pooled width]``, in families that take one."""
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    """What else a family is told, by the name that its denoiser knows; each ``[batch, ...]``."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Index) -> "Condition":
        """Some of the prompts, in any order and as often as they are named."""
        return self.map(lambda tensor: tensor[index])

    def map(self, change: Callable[[Tensor], Tensor]) -> "Condition":
        """``change`` of every tensor."""
        pooled = None if self.pooled is None else change(self.pooled)
        return Condition(
            change(self.rows), pooled, {name: change(one) for name, one in self.extra.items()}
        )

    def to(
        self, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> "Condition":
        """On a device, in a precision; tensors that are so already are not copied."""
        return self.map(lambda tensor: tensor.to(device=device, dtype=dtype))

    def expand(self, count: int) -> "Condition":
        """One prompt for a batch of ``count``, without a copy."""
        return self.map(lambda tensor: tensor.expand(count, *tensor.shape[1:]))

    def detach(self) -> "Condition":
        """The same numbers, without gradients."""
        return self.map(Tensor.detach)

    @staticmethod
    def cat(parts: "Sequence[Condition]") -> "Condition":
        """The prompts of all parts, one part after the other.

        Raises:
            ValueError: the parts are of different families.
        """
        first = parts[0]
        names = set(first.extra)
        if any(
            set(p.extra) != names or (p.pooled is None) != (first.pooled is None) for p in parts
        ):
            raise ValueError("these conditions are of different families and can't be joined")
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return Condition(
            torch.cat([part.rows for part in parts]),
            torch.cat(pooled) if pooled else None,
            {name: torch.cat([part.extra[name] for part in parts]) for name in first.extra},
        )
