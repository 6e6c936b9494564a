"""Tensors that a training computes once and keeps in its folder, for when it goes on later."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from expunge.errors import ExpungeError
from expunge.files import digest
from expunge.method.run import Run
from expunge.tensors import read, write

ENTRY = "expunge"


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
    model = run.model
    made_on = {"base": model.fingerprint(), "dtype": str(model.dtype), "device": model.device.type}
    key = digest({**recipe, **made_on})
    found = load_cached(path, key)
    if found:
        return {name: tensor.to(run.model.device) for name, tensor in found.items()}
    made = compute()
    if run.process == 0:
        save_cached(path, made, key)
    return made


def load_cached(path: Path, key: str) -> dict[str, Tensor] | None:
    """The tensors of a file, if it exists, is whole, and was saved with the same key."""
    try:
        record, tensors = read(path, ENTRY, "cache")
    except ExpungeError:  # absent, damaged or of another version: they are computed again
        return None
    return tensors if record.get("key") == key else None


def save_cached(path: Path, tensors: Mapping[str, Tensor], key: str) -> None:
    """Write tensors with a key that says what they were made from."""
    write(path, ENTRY, {"key": key}, tensors)
