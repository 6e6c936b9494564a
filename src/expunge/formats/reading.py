"""Read what published erased models are kept in: torch files, safetensors, UNet folders."""

import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from expunge.errors import ExpungeError
from expunge.models.sources import variant
from expunge.tensors import raw


def read(path: Path) -> dict[str, Tensor]:
    """Tensors by name, from any of the layouts.

    Raises:
        ExpungeError: nothing readable is there, or reading it could run code.
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise ExpungeError(f"{path}: no such file or folder")
    with path.open("rb") as file:
        start = file.read(9)
    if start[8:] == b"{":
        return raw(path)[1]
    if start.startswith((b"PK", b"\x80")):
        return _tensors(path, _unpickled(path, mmap=start.startswith(b"PK")))
    raise ExpungeError(f"{path}: neither a safetensors file nor one that torch saved")


def _read_folder(path: Path) -> dict[str, Tensor]:
    """The tensors of its one safetensors file, or what diffusers reads of older layouts."""
    if (path / "model_index.json").exists():
        raise ExpungeError(f"{path}: a whole pipeline; give its UNet, {path / 'unet'}")
    ending = f".{chosen}" if (chosen := variant(path)) else ""
    file = path / f"diffusion_pytorch_model{ending}.safetensors"
    if file.is_file() and (path / "config.json").is_file():
        return raw(file)[1]
    return _built(path)


def _built(path: Path) -> dict[str, Tensor]:
    from diffusers import UNet2DConditionModel

    try:
        unet, info = UNet2DConditionModel.from_pretrained(
            path, variant=variant(path), local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ExpungeError(f"{path}: no diffusers UNet folder: {reason}") from None
    # What is missing diffusers fills with random numbers, what it doesn't know it leaves out.
    if faults := [*info["missing_keys"], *info["unexpected_keys"]]:
        raise ExpungeError(
            f"{path}: {len(faults)} weights are missing or unknown, e.g. {faults[0]}"
        )
    weights: dict[str, Tensor] = unet.state_dict()
    return weights


def _unpickled(path: Path, *, mmap: bool) -> Any:
    try:
        if path.suffix == ".safetensors":  # by this name torch would take it for such a file
            with path.open("rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it asks for {wanted[1]}" if wanted else "it may be damaged"
        raise ExpungeError(
            f"{path}: holds more than tensors ({reason}), and reading that could run code; get it "
            "as safetensors, or as a plain state dict from someone you trust"
        ) from None
    except Exception as error:  # damaged pickles raise whatever they like
        told = (str(error) or type(error).__name__).partition("\n")[0][:200]
        raise ExpungeError(f"{path}: cut short or damaged ({told})") from None


def _tensors(path: Path, content: Any) -> dict[str, Tensor]:
    """A state dict without its wrappers: ``state_dict``, ``unet.``, a dict for each module."""
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise ExpungeError(f"{path}: holds a {type(content).__name__}, not weights by name")
    return {name.removeprefix("unet."): tensor for name, tensor in _flat(content)}


def _flat(content: Mapping[Any, Any]) -> Iterator[tuple[str, Tensor]]:
    for name, value in content.items():
        if isinstance(value, Tensor):
            yield str(name), value
        elif isinstance(value, Mapping):
            yield from ((f"{name}.{rest}", tensor) for rest, tensor in _flat(value))
