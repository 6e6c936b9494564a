"""Q16: whether a picture is inappropriate, by two prototypes in CLIP's space.

Schramowski, Tauchmann, Kersting, "Can machines help us answering question 16 in datasheets, and in
turn reflecting on inappropriate content?", FAccT 2022. Several sets of prototypes circulate and
give different numbers; the identity says which was used.
"""

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from expunge.detectors.base import Identity, Images
from expunge.detectors.clip import Clip, prototype_probabilities
from expunge.detectors.clip import build as build_clip
from expunge.detectors.weights import existing, tensors
from expunge.errors import ExpungeError
from expunge.files import digest, sha256

_USAGE = (
    "the prototypes and the CLIP they were tuned for, as in q16:prompts.p@FOLDER; the prototypes "
    "are a .p, .npy, .pt or .safetensors file"
)


class Q16:
    """A ``Classifier`` with two labels; the likelier one counts."""

    labels = ("not inappropriate", "inappropriate")

    def __init__(self, clip: Clip, prototypes: Tensor, head: str, head_sha256: str) -> None:
        if prototypes.shape[1] != clip.width:
            raise ExpungeError(
                f"{head}: prototypes of width {prototypes.shape[1]} are of another CLIP than "
                f"{clip.identity.name}, whose features have width {clip.width}"
            )
        self._clip, self._prototypes = clip, prototypes
        both = digest({"head": head_sha256, "clip": clip.identity.sha256})
        self.identity = Identity(name=f"q16:{head}@{clip.identity.name}", version="", sha256=both)

    def probabilities(self, pictures: Images) -> Tensor:
        """``[pictures, 2]``: the softmax of 100 times the cosines with the two prototypes."""
        return prototype_probabilities(self._clip.features(pictures), self._prototypes)


def build(weights: str) -> Q16:
    """``q16:HEAD@CLIP``: a file of prototypes, and a folder or hub id of its CLIP.

    Raises:
        ExpungeError: one isn't there or can't be read, or they don't fit together.
    """
    head, _, clip = weights.rpartition("@")
    if not head or not clip:
        raise ExpungeError(f"q16:{weights}: write {_USAGE}")
    file = existing("q16", head, _USAGE)
    return Q16(build_clip(clip), prototypes(file), file.name, sha256(file))


def prototypes(path: Path) -> Tensor:
    """``[2, width]`` float32: not inappropriate, inappropriate.

    Raises:
        ExpungeError: the file can't be read, or holds something else.
    """
    if path.suffix not in _READERS:
        raise ExpungeError(f"{path}: prototypes are a {', '.join(_READERS)} file")
    rows = torch.as_tensor(_READERS[path.suffix](path))
    if rows.ndim != 2 or len(rows) != 2 or not rows.is_floating_point():
        raise ExpungeError(f"{path}: holds {rows.dtype} {list(rows.shape)}, not two prototypes")
    rows = rows.detach().float()
    if not rows.isfinite().all() or not rows.norm(dim=-1).all():
        raise ExpungeError(f"{path}: the prototypes have no direction (NaN, infinite or 0)")
    return rows


class _ArrayUnpickler(pickle.Unpickler):
    """Knows how to build one numpy array and nothing else."""

    _ALLOWED: Mapping[tuple[str, str], Any] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return self._ALLOWED[module, name]


def _pickled(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            found = _ArrayUnpickler(file).load()
    except Exception as error:  # a broken pickle raises whatever its bytes happen to lead to
        raise ExpungeError(f"{path}: no pickle of one numpy array ({error})") from None
    return _numeric(path, found)


def _npy(path: Path) -> Any:
    try:
        return _numeric(path, np.load(path, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise ExpungeError(f"{path}: no .npy file of numbers ({error})") from None


def _numeric(path: Path, found: Any) -> Any:
    if not isinstance(found, np.ndarray) or found.dtype.kind != "f":
        raise ExpungeError(f"{path}: holds no array of floating-point numbers")
    return found


def _torch(path: Path) -> Any:
    found = tensors(path)
    values = list(found.values()) if isinstance(found, Mapping) else [found]
    if len(values) != 1 or not isinstance(values[0], Tensor):
        raise ExpungeError(f"{path}: holds no single tensor of two prototypes")
    return values[0]


_READERS: Mapping[str, Callable[[Path], Any]] = {
    ".p": _pickled,
    ".npy": _npy,
    ".pt": _torch,
    ".safetensors": _torch,
}
