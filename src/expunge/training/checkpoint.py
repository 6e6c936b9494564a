"""A training state on disk: weights, optimiser and the step they belong to, or nothing."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from expunge.errors import ExpungeError
from expunge.files import replacing
from expunge.training.student import Student

FILE = "checkpoint.safetensors"


def save(
    folder: str | os.PathLike[str],
    run: str,
    step: int,
    losses: list[float],
    student: Student,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write the state after ``step`` steps of the run with this digest, whole or not at all."""
    tensors = {f"weight:{name}": weight.detach() for name, weight in student.weights.items()}
    states = optimizer.state_dict()["state"]
    for name, index in zip(student.weights, range(len(student.weights)), strict=True):
        tensors |= {f"{key}:{name}": value for key, value in states.get(index, {}).items()}
    state = json.dumps({"run": run, "step": step, "losses": losses})
    with replacing(Path(folder) / FILE) as temporary:
        save_file(
            {name: tensor.cpu().contiguous() for name, tensor in tensors.items()},
            temporary,
            metadata={"expunge": state},
        )


def restore(
    folder: str | os.PathLike[str],
    run: str,
    student: Student,
    optimizer: torch.optim.Optimizer,
) -> list[float]:
    """Put a saved state back and return the losses so far; an empty list when there is none.

    Raises:
        ExpungeError: the folder holds the state of a run with other settings.
    """
    path = Path(folder) / FILE
    if not path.exists():
        return []
    with safe_open(path, framework="pt") as file:
        state = json.loads(file.metadata()["expunge"])
        if state["run"] != run:
            raise ExpungeError(
                f"{folder} holds the checkpoint of a run with other settings, another model or "
                "another version; choose another folder or delete this one"
            )
        saved: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    states: dict[int, dict[str, Any]] = {}
    with torch.no_grad():
        for index, (name, weight) in enumerate(student.weights.items()):
            weight.copy_(saved.pop(f"weight:{name}"))
            keys = [key for key in saved if key.partition(":")[2] == name]
            states[index] = {key.partition(":")[0]: saved.pop(key) for key in keys}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
    losses: list[float] = state["losses"]
    return losses
