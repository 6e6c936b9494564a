"""A training's state on disk: the weights, the optimiser and the step, saved whole or not at all.

The log has a line for each step with its losses. Lines are only ever appended, and the state says
how many of them belong to it. So saving takes no longer late in a training than early.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor

from expunge.concepts import explain
from expunge.errors import ExpungeError
from expunge.files import digest, write_text
from expunge.method.student import Student
from expunge.tensors import read, write

FILE = "checkpoint.safetensors"
LOG = "losses.jsonl"
ENTRY = "expunge"
"""Of the header, for the run and the step."""

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
    record = {"run": run, "steps": steps, "log": digest(_lines(folder, steps))}
    write(folder / FILE, ENTRY, record, tensors)


def restore(
    folder: Path,
    run: str,
    student: Student,
    optimizer: torch.optim.Optimizer,
    sums: dict[str, Tensor],
) -> History:
    """Restore a saved state and return its history; an empty list if there is none.

    Raises:
        ExpungeError: the folder holds the state of a run with other settings or on another device,
            a damaged state, or no log.
    """
    path = folder / FILE
    if not path.exists():
        return []
    try:
        record, saved = read(path, ENTRY, "checkpoint")
        steps = TypeAdapter(Annotated[int, Field(ge=0)]).validate_python(record.get("steps"))
    except (ExpungeError, ValidationError) as error:
        fault = explain(error) if isinstance(error, ValidationError) else error
        raise ExpungeError(f"{fault}; delete {folder} and begin again") from None
    if record.get("run") != run:
        raise ExpungeError(
            f"{folder} holds the checkpoint of a run with other settings, another model, "
            "precision, device or version; choose another folder or delete this one"
        )
    try:
        _restore(saved, student, optimizer, sums)
    except (KeyError, RuntimeError, ValueError) as error:
        raise ExpungeError(
            f"{path}: damaged, its tensors don't fit ({error}); delete {folder} and begin again"
        ) from None
    return read_log(folder, steps, str(record.get("log")))


def _restore(
    saved: Mapping[str, Tensor],
    student: Student,
    optimizer: torch.optim.Optimizer,
    sums: dict[str, Tensor],
) -> None:
    """Put tensors by ``kind:name`` where they belong."""
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


def read_log(folder: Path, steps: int, sha256: str) -> History:
    """The losses of the first steps.

    Raises:
        ExpungeError: the log is missing, too short, or other than the checkpoint says.
    """
    try:
        lines = _lines(folder, steps)
    except (OSError, ValueError):
        lines = []
    if len(lines) < steps:
        raise ExpungeError(
            f"{folder / LOG}: lacks steps that the checkpoint beside it has behind it; put the "
            "whole log back, or delete the folder and begin again"
        )
    if digest(lines) != sha256:
        raise ExpungeError(f"{folder / LOG}: was changed; delete {folder} and begin again")
    return [json.loads(line) for line in lines]


def _lines(folder: Path, steps: int) -> list[str]:
    """The whole lines of the first steps."""
    lines = (folder / LOG).read_text(encoding="utf-8").splitlines(keepends=True)[:steps]
    return [line for line in lines if line.endswith("\n")]


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
