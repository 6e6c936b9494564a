"""Muon: momentum whose matrices are made orthogonal before each step, with AdamW for the rest.

K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024,
https://kellerjordan.github.io/posts/muon; the size of a step follows J. Liu et al.,
arXiv:2502.16982, so that one learning rate serves both kinds of parameter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from common import precision
from torch import Tensor, nn
from torch import distributed as dist


def orthogonal(matrix: Tensor, steps: int = 5) -> Tensor:
    """Roughly U V^T of the singular value decomposition of [m, n], by Newton-Schulz iterations."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.to(precision(matrix.device))
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x.T if tall else x
    return result


class Muon(torch.optim.Optimizer):
    """Orthogonal momentum for matrices and convolutions.

    With several processes each one orthogonalises its share and all of them sum the results.
    """

    def __init__(self, params: Any, lr: float, momentum: float = 0.95, decay: float = 0.01) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            updates = [torch.zeros_like(p, dtype=torch.float32) for p in params]
            for index, (p, update) in enumerate(zip(params, updates, strict=True)):
                buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                if index % world == rank:
                    ahead = p.grad.lerp(buffer, group["momentum"]).flatten(1)
                    size = 0.2 * max(ahead.shape) ** 0.5
                    update.copy_((size * orthogonal(ahead)).view_as(p))
            if world > 1:
                flat = torch.cat([update.flatten() for update in updates])
                dist.all_reduce(flat)
                parts = torch.split(flat, [update.numel() for update in updates])
                updates = [q.view_as(u) for q, u in zip(parts, updates, strict=True)]
            torch._foreach_mul_(params, 1 - group["lr"] * group["decay"])
            torch._foreach_add_(params, updates, alpha=-group["lr"])


def optimizers(model: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for everything with two or more dimensions inside the network, AdamW for the rest."""
    hidden: list[Tensor] = []
    rest: list[Tensor] = []
    for name, p in model.named_parameters():
        edge = name.startswith(("conv_in", "conv_out"))
        (rest if p.ndim < 2 or edge else hidden).append(p)
    return [
        Muon(hidden, lr),
        torch.optim.AdamW(rest, lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True),
    ]
