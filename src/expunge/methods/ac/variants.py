"""The released Ablating Concepts programs as settings: their defaults, and what each can train."""

from typing import Any, Literal

AcVariant = Literal["diffusers", "compvis", "sepme"]
LossType = Literal["model-based", "noise-based"]

_RELEASED: dict[str, Any] = {
    "prior_weight": 0.0,
    "weight_decay": 0.01,
    "images": 1000,
    "augment": True,
    "hflip": True,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "diffusers": _RELEASED,
    "compvis": {**_RELEASED, "max_grad_norm": None, "num_inference_steps": 200},
    "sepme": {
        "parameter_group": "cross-attention",
        "prior_weight": 10.0,
        "iterations": 51,
        "lr": 1e-5,
        "optimizer": "torch.optim.Adam",
        "max_grad_norm": None,
        "gradients": "cumulative",
        "batch_size": 1,
        "accumulation": 1,
        "images": 1000,
        "num_inference_steps": 100,
        "guidance_scale": 7.5,
    },
}
"""Defaults of the released programs, where they differ from the method's."""


_DIFFUSERS = {
    "cross-attn": "cross_attention.kv",
    "attn": "self_attention | cross_attention",
    "full-weight": "all",
}
GROUPS: dict[str | None, dict[str, str]] = {
    None: _DIFFUSERS,
    "diffusers": _DIFFUSERS,
    "compvis": {
        "cross-attn": "cross_attention.kv",
        "crossattn": "attention.qkv",
        "full-weight": "all",
    },
    "sepme": {"cross-attention": "cross_attention"},
}
"""What each program trains, by the name on its command line; ``None`` is the corrected method."""
