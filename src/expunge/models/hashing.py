"""Sums of weights that are alike for one model in several precisions."""

import hashlib

import torch
from torch import Tensor


def update(total: "hashlib._Hash", name: str, value: Tensor) -> None:
    """Add a tensor to a sum, rounded to half precision."""
    total.update(f"{name}{tuple(value.shape)}".encode())
    total.update(value.detach().to("cpu", torch.float16).contiguous().numpy().tobytes())
