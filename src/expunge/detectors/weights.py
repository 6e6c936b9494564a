"""Shared code for loading a user's weights and for judging pictures in batches."""

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from expunge.detectors.base import Images
from expunge.errors import ExpungeError
from expunge.models.loading import quietly

BATCH = 32
"""Pictures looked at together."""


def existing(kind: str, weights: str, what: str) -> Path:
    """The file named after ``kind:``.

    Raises:
        ExpungeError: none is named, or it doesn't exist; ``what`` says what to give.
    """
    if not weights:
        raise ExpungeError(f"{kind}: needs weights; write {kind}: and {what} after it")
    if not Path(weights).is_file():
        raise ExpungeError(f"{kind}:{weights}: no such file; give {what}")
    return Path(weights)


def tensors(path: Path) -> Any:
    """What a ``.safetensors`` file or a torch file holds, on the CPU; code in it is never run.

    Raises:
        ExpungeError: it isn't such a file, or holds more than tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ExpungeError(
            f"{path}: no torch file, or one with more than tensors in it, which could run code; "
            "save the state dict alone, as safetensors"
        ) from None
    except Exception as error:  # damaged files raise whatever they like
        raise ExpungeError(f"{path}: can't read tensors from this file ({_line(error)})") from None


def pretrained(kind: str, weights: str, load: Callable[[str, str], Any]) -> Any:
    """``load(place, name)`` of a folder, or of a hub id that was downloaded already.

    Args:
        kind: the detector's name.
        weights: the folder or id.
        load: calls ``from_pretrained(place)``; the name is for people.

    Raises:
        ExpungeError: it can't be loaded.
    """
    from huggingface_hub import snapshot_download

    place = weights
    if not Path(weights).exists():
        try:
            place = snapshot_download(weights, local_files_only=True)
        except (OSError, ValueError):
            raise ExpungeError(
                f"{kind}:{weights}: can't load this model (no such folder, and not downloaded yet: "
                f"hf download {weights})"
            ) from None
    try:
        with quietly():
            return load(place, f"{kind}:{Path(weights).name}")
    except ExpungeError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise ExpungeError(f"{kind}:{weights}: can't load this model ({_line(error)})") from None


def trained_model(loader: Any, place: str, name: str) -> Any:
    """A transformers model in float32, ready to judge.

    Raises:
        ExpungeError: the files lack some of its weights, which would then be random.
    """
    loaded, about = loader.from_pretrained(place, dtype=torch.float32, output_loading_info=True)
    if missing := sorted(about["missing_keys"]):
        raise ExpungeError(
            f"{name}: {len(missing)} weights are missing, e.g. {missing[0]}; "
            f"this is no trained {type(loaded).__name__}"
        )
    return ready(loaded)


def ready(module: Any) -> Any:
    """The module in evaluation mode, its weights without gradients, on a GPU if there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module.eval().to(device)


def device(module: nn.Module) -> torch.device:
    """Where a module is."""
    return next(module.parameters()).device


def fingerprint(module: nn.Module) -> str:
    """Hex SHA-256 of all weights as float32, independent of the files they came from."""
    total = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        total.update(f"{name}{tuple(value.shape)}".encode())
        total.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


def in_batches(pictures: Images, compute: Callable[[Images], Tensor], name: str) -> Tensor:
    """One row for each picture, ``[pictures, ...]``, float32 on the CPU.

    Raises:
        ExpungeError: there is no picture, or a row isn't finite.
    """
    if not pictures:
        raise ExpungeError(f"{name}: there is no picture to look at")
    with torch.no_grad():
        parts = [compute(pictures[i : i + BATCH]) for i in range(0, len(pictures), BATCH)]
    return checked(torch.cat(parts), len(pictures), name)


def checked(rows: Tensor, count: int, name: str) -> Tensor:
    """``rows`` as float32 on the CPU.

    Raises:
        ExpungeError: there aren't ``count`` of them, or one isn't finite.
    """
    rows = rows.float().cpu()
    if len(rows) != count:
        raise ExpungeError(f"{name} failed: {len(rows)} results for {count}")
    finite = rows.isfinite().flatten(1).all(1) if rows.ndim > 1 else rows.isfinite()
    if not finite.all():
        first = int(finite.logical_not().nonzero()[0]) + 1
        raise ExpungeError(f"{name} failed: a result that isn't finite for {first} of {count}")
    return rows


def array(picture: Image.Image) -> Tensor:
    """A picture as uint8 ``[3, height, width]``."""
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
