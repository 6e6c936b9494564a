"""A training's state on disk: the weights, the optimiser and the step, saved whole or not at all.

The log has a line for each step with its losses. Lines are only ever appended, and the state says
how many of them belong to it. So saving takes no longer late in a training than early.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from expunge.errors import ExpungeError
from expunge.files import replacing, write_text
from expunge.method.student import Student

FILE = "checkpoint.safetensors"
LOG = "losses.jsonl"

History = list[dict[str, float]]
"""The losses of each step, by name."""


def save(
    folder: Path,
    run: str,
    steps: int,
    student: Student,
    optimizer: torch.optim.Optimizer,
    sums: Mapping[str, Tensor],
) -> None:
    """Write the state after ``steps`` steps, whole or not at all; the log has their lines.

    Args:
        folder: the folder of checkpoints.
        run: digest of everything that decides the result.
        steps: how many have been taken.
        student: its weights.
        optimizer: its state.
        sums: gradients summed up over all steps, by weight; empty where they are reset.
    """
    tensors = {f"weight:{name}": weight.detach() for name, weight in student.weights.items()}
    tensors |= {f"sum:{name}": total for name, total in sums.items()}
    states = optimizer.state_dict()["state"]
    for index, name in enumerate(_ordered(student, optimizer)):
        tensors |= {f"{key}:{name}": value for key, value in states.get(index, {}).items()}
    state = json.dumps({"run": run, "steps": steps})
    with replacing(folder / FILE) as temporary:
        save_file(
            {name: tensor.cpu().contiguous() for name, tensor in tensors.items()},
            temporary,
            metadata={"expunge": state},
        )


def restore(
    folder: Path,
    run: str,
    student: Student,
    optimizer: torch.optim.Optimizer,
    sums: dict[str, Tensor],
) -> History:
    """Restore a saved state and return its history; an empty list if there is none.

    Raises:
        ExpungeError: the folder holds the state of a run with other settings, or its log is gone.
    """
    path = folder / FILE
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
    own: dict[str, dict[str, Tensor]] = {name: {} for name in student.weights}
    for key, tensor in saved.items():
        kind, _, name = key.partition(":")
        own[name][kind] = tensor
    with torch.no_grad():
        for name, weight in student.weights.items():
            weight.copy_(own[name].pop("weight"))
            if "sum" in own[name]:
                sums[name] = own[name].pop("sum").to(weight.device)
    order = enumerate(_ordered(student, optimizer))
    states: dict[int, dict[str, Any]] = {index: own[name] for index, name in order}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
    return read_log(folder, state["steps"])


def read_log(folder: Path, steps: int) -> History:
    """The losses of the first steps.

    Raises:
        ExpungeError: the log is missing, damaged or too short.
    """
    try:
        lines = (folder / LOG).read_text(encoding="utf-8").splitlines()[:steps]
        history: History = [json.loads(line) for line in lines]
    except (OSError, ValueError):
        history = []
    if len(history) < steps:
        raise ExpungeError(
            f"{folder / LOG}: lacks steps that the checkpoint beside it has behind it; put the "
            "whole log back, or delete the folder and begin again"
        )
    return history


def write_log(folder: Path, history: History) -> None:
    """Write the log anew, a line per step."""
    write_text(folder / LOG, "".join(f"{json.dumps(record)}\n" for record in history))


def append_log(folder: Path, record: Mapping[str, float]) -> None:
    """Add a step to the log."""
    with (folder / LOG).open("a", encoding="utf-8") as file:
        file.write(f"{json.dumps(record)}\n")


def _ordered(student: Student, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the weights in the order in which the optimiser counts them."""
    names = {id(weight): name for name, weight in student.weights.items()}
    return [names[id(weight)] for group in optimizer.param_groups for weight in group["params"]]
