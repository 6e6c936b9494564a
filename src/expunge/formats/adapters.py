"""LoRAs of other programs as edits: kohya's, LECO's, PEFT's, diffusers' and our own exports.

A layer has ``down`` ``[rank, in]`` and ``up`` ``[out, rank]``, and adds ``alpha / rank`` times
their product. Kohya's trainer and LECO write ``lora_unet_<path>.lora_down.weight``,
``.lora_up.weight`` and ``.alpha``, with underscores for the path's dots; PEFT and diffusers
``<path>.lora_A.weight`` and ``.lora_B.weight``, and PEFT keeps alpha in ``adapter_config.json``.
Without an alpha it is the rank.
"""

import fnmatch
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from expunge.concepts import Concept
from expunge.edits.base import Base
from expunge.edits.edit import Edit
from expunge.edits.payloads import Dense, LowRank
from expunge.errors import ExpungeError, Unsupported
from expunge.files import PathLike
from expunge.formats.imported import imported
from expunge.models import Model

ENDS = {
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".alpha": "alpha",
}
"""What a tensor is, by the end of its name."""
STARTS = ("base_model.model.", "lora_unet_", "unet.")
TEXT = ("lora_te", "text_encoder", "text_model")
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
"""The files of a PEFT folder."""


class Layer(NamedTuple):
    """Factors of one weight, as matrices; ``alpha / rank`` is in ``up``."""

    up: Tensor
    down: Tensor


def recognised(path: PathLike) -> bool:
    """Whether ``path`` is a LoRA: a safetensors file, or a PEFT folder."""
    try:
        with safe_open(_file(path), framework="pt") as file:
            names = list(file.keys())
    except (SafetensorError, OSError):
        return False
    return any(".lora_" in name or ".lora." in name for name in names)


def load(path: PathLike, model: Model, concepts: Sequence[Concept] = ()) -> Edit:
    """The edit that adds a LoRA to ``model``.

    Args:
        path: a safetensors file, or a PEFT folder.
        model: the base that it was trained for.
        concepts: what it claims to erase, for the record.

    Raises:
        ExpungeError: it is damaged, or for another model.
        Unsupported: it changes the text encoder, or isn't made of two factors.
    """
    layers = read(path, model)
    shapes = {name: model.base_weight(name).shape for name in layers}
    payload: LowRank | Dense
    if all(shape.numel() == shape[0] * shape[1] for shape in shapes.values()):
        payload = LowRank(
            {name: layer.up for name, layer in layers.items()},
            {name: layer.down for name, layer in layers.items()},
        )
    else:  # convolutions of several pixels
        payload = Dense(
            {name: (up @ down).view(shapes[name]) for name, (up, down) in layers.items()}
        )
    base = Base.of(model, payload.names, payload.reads_text)
    return Edit((imported(payload, Path(path), base, concepts),))


def read(path: PathLike, model: Model) -> dict[str, Layer]:
    """The layers of a LoRA by the names of the model's weights.

    Raises:
        ExpungeError: it is damaged, or for another model.
    """
    found = _sorted(path)
    names = _names(model)
    layers = {}
    for layer, parts in found.items():
        if layer not in names:
            raise ExpungeError(f"{path}: {model.name!r} has no layer {layer!r}; wrong base?")
        layers[names[layer]] = _layer(path, layer, parts, model.base_weight(names[layer]))
    return dict(sorted(layers.items()))


def _sorted(path: PathLike) -> dict[str, dict[str, Tensor]]:
    """``up``, ``down`` and ``alpha`` of each layer, by its name with underscores for dots."""
    with safe_open(_file(path), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    config = _config(path)
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        end = next((end for end in ENDS if name.endswith(end)), None)
        if name.startswith(TEXT):
            raise Unsupported(
                f"{path}: changes the text encoder too ({name}); an edit changes the UNet alone, "
                "and half of a LoRA isn't what it was trained to be"
            )
        if end is None:
            raise Unsupported(f"{path}: {name!r} is no part of a plain LoRA, so it can't be read")
        layer = name.removesuffix(end)
        for start in STARTS:
            layer = layer.removeprefix(start)
        parts = found.setdefault(layer.replace(".", "_"), {})
        parts[ENDS[end]] = tensor
        if ENDS[end] == "down" and config:
            parts["alpha"] = torch.tensor(_alpha(config, layer, len(tensor)))
    return found


def _alpha(config: Mapping[str, Any], layer: str, rank: int) -> float:
    """Alpha of a PEFT layer, for which a pattern that ends its name goes first."""
    patterns = config.get("alpha_pattern") or {}
    own = (value for key, value in patterns.items() if fnmatch.fnmatch(f".{layer}", f"*.{key}"))
    alpha = float(next(own, config.get("lora_alpha", rank)))
    return alpha * rank**0.5 if config.get("use_rslora") else alpha


def _layer(path: PathLike, layer: str, parts: Mapping[str, Tensor], weight: Tensor) -> Layer:
    if missing := {"up", "down"} - parts.keys():
        raise ExpungeError(f"{path}: lacks {missing.pop()} of {layer}; the file is damaged")
    up, down = parts["up"].float().flatten(1), parts["down"].float().flatten(1)
    if weight.flatten(1).shape != (len(up), down.shape[1]) or up.shape[1] != len(down):
        raise ExpungeError(
            f"{path}: {layer} is for a layer of {down.shape[1]} to {len(up)}, here "
            f"{weight.flatten(1).shape[1]} to {len(weight)}; it was made from another model"
        )
    alpha = float(parts.get("alpha", len(down)))
    up = up * (alpha / len(down))
    if not bool(torch.isfinite(up).all() and torch.isfinite(down).all()):
        raise ExpungeError(f"{path}: {layer} holds numbers that aren't finite")
    return Layer(up, down)


def _names(model: Model) -> dict[str, str]:
    """Weights by the names of their layers with underscores for dots."""
    names = (name for name in model.select("layers") if name.endswith(".weight"))
    return {name.removesuffix(".weight").replace(".", "_"): name for name in names}


def _file(path: PathLike) -> Path:
    return Path(path) / TENSORS if Path(path).is_dir() else Path(path)


def _config(path: PathLike) -> dict[str, Any]:
    place = Path(path) / CONFIG
    if not place.is_file():
        return {}
    config: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
    if config.get("use_dora"):
        raise Unsupported(f"{path}: a DoRA, which isn't a sum of products")
    return config
