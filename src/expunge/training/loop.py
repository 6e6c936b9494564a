"""The one training loop: precision, checkpoints, progress and the guard against NaN live here."""

import math
import os
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from expunge.concepts import Policy
from expunge.edits.payloads import Dense
from expunge.errors import ExpungeError
from expunge.files import digest
from expunge.methods.base import Method, Trains
from expunge.models import Model
from expunge.progress import track
from expunge.training import checkpoint
from expunge.training.student import Student

SAVE_EVERY = 25
"""Steps between two checkpoints."""


def optimizer_of(method: Trains, student: Student) -> torch.optim.Optimizer:
    """Adam as every method of this family uses it: betas 0.9 and 0.999, no decay."""
    return torch.optim.Adam(student.weights.values(), lr=method.lr)


def step(
    method: Trains,
    student: Student,
    optimizer: torch.optim.Optimizer,
    batch: Mapping[str, Tensor],
) -> float:
    """One step of the optimiser; returns the loss before it.

    Raises:
        ExpungeError: the loss isn't finite.
    """
    optimizer.zero_grad(set_to_none=True)
    loss = method.loss(student, batch)
    value = loss.item()
    if not math.isfinite(value):
        raise ExpungeError(
            f"the loss became {value}; use a smaller learning rate or negative guidance, or a "
            "model in higher precision"
        )
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return value


def fit(method: Trains, student: Student, batches: Iterable[Mapping[str, Tensor]]) -> list[float]:
    """Train on the given batches, one step each; returns the losses."""
    optimizer = optimizer_of(method, student)
    return [step(method, student, optimizer, batch) for batch in batches]


def train(
    method: Method,
    model: Model,
    policy: Policy,
    *,
    seed: int,
    checkpoints: str | os.PathLike[str] | None = None,
) -> Dense:
    """Run a method to its end, from its last checkpoint if there is one.

    The state is written every ``SAVE_EVERY`` steps, and the batches of a step depend on the
    seed, the step and the weights alone: a run that was killed ends with the same weights.
    """
    if not isinstance(method, Trains):
        raise ExpungeError(f"{method.name} is solved, not trained")
    student = Student(model, method.parameters(model))
    optimizer = optimizer_of(method, student)
    run = _digest(method, model, policy, seed) if checkpoints else ""
    losses = checkpoint.restore(checkpoints, run, student, optimizer) if checkpoints else []
    total, done = method.iterations, len(losses)
    batches = method.batches(model, policy, student, seed, done)
    steps = track(range(done, total), f"training {method.name}", total=total, start=done)
    for count, batch in zip(steps, batches, strict=False):
        losses.append(step(method, student, optimizer, batch))
        if checkpoints and (count + 1) % SAVE_EVERY == 0:
            checkpoint.save(checkpoints, run, count + 1, losses, student, optimizer)
    return Dense(student.changes())


def _digest(method: Method, model: Model, policy: Policy, seed: int) -> str:
    return digest(
        {
            "method": method.name,
            "settings": method.model_dump(mode="json"),
            "policy": policy.model_dump(mode="json"),
            "base": model.fingerprint(),
            "seed": seed,
            "torch": torch.__version__,
        }
    )
