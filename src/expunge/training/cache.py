"""Tensors that a training computes once and keeps in its folder, for when it goes on later."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from expunge.files import digest, replacing
from expunge.method.run import Run


def cached(
    run: Run[Any], name: str, recipe: Mapping[str, Any], compute: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Tensors from a file in the run's folder, or computed and, if there is a folder, kept there.

    Args:
        run: whose folder, model and processes; the first process writes.
        name: of the file.
        recipe: what decides the tensors, besides the base model.
        compute: gives them.
    """
    if run.folder is None:
        return compute()
    path = run.folder / f"{name}.safetensors"
    key = digest({**recipe, "base": run.model.fingerprint()})
    found = load_cached(path, key)
    if found:
        return {name: tensor.to(run.model.device) for name, tensor in found.items()}
    made = compute()
    if run.process == 0:
        save_cached(path, made, key)
    return made


def load_cached(path: Path, key: str) -> dict[str, Tensor] | None:
    """The tensors of a file, if it exists and was saved with the same key."""
    if not path.exists():
        return None
    with safe_open(path, framework="pt") as file:
        if file.metadata().get("expunge") != key:
            return None
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def save_cached(path: Path, tensors: Mapping[str, Tensor], key: str) -> None:
    """Write tensors with a key that says what they were made from."""
    ready = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        save_file(ready, temporary, metadata={"expunge": key})
