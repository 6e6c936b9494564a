"""What a training writes down: its state now and then, each step's record at once."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from expunge.concepts import Policy
from expunge.files import digest
from expunge.method.base import Method
from expunge.method.run import Run
from expunge.models import Model
from expunge.prompts.everyday import everyday
from expunge.training import checkpoint
from expunge.training.checkpoint import History

SAVE_EVERY = 25
"""Steps between two checkpoints, at least."""
SAVE_SHARE = 0.05
"""Share of the time that saving may take: where steps are quick, checkpoints are further apart."""


class Saving:
    """Decides when the state is written.

    ``write`` is called with the number of steps taken; ``None`` where nothing is to be written.
    """

    def __init__(self, write: Callable[[int], None] | None, steps: int) -> None:
        self.write = write
        self.steps = steps
        """At the last checkpoint."""
        self.due = 0.0
        """The time before which another one would take too large a share."""

    def after(self, steps: int, *, last: bool) -> None:
        """Write the state after so many steps, if it is time; after the last one in any case."""
        early = steps - self.steps < SAVE_EVERY or time.monotonic() < self.due
        if self.write is None or (early and not last):
            return
        began = time.monotonic()
        self.write(steps)
        self.steps, ended = steps, time.monotonic()
        self.due = ended + (ended - began) * (1 / SAVE_SHARE - 1)


def step_log(run: Run[Any], history: History) -> Callable[[Mapping[str, float]], None]:
    """A function that writes a step's record to the log and to the tracker.

    The log begins with the ``history`` so far.
    """
    folder = run.folder if run.process == 0 else None
    if folder:
        checkpoint.write_log(folder, history)

    def write(record: Mapping[str, float]) -> None:
        if folder:
            checkpoint.append_log(folder, record)
        if run.accelerator:
            run.accelerator.log(dict(record), step=len(history))

    return write


def run_digest(method: Method, model: Model, policy: Policy, seed: int) -> str:
    """Digest of everything that decides a training's result."""
    return digest(
        {
            "method": method.name,
            "settings": method.model_dump(mode="json"),
            "everyday": list(everyday()) if getattr(method, "everyday", 0) else None,
            "policy": policy.model_dump(mode="json", exclude={"limits"}),
            "base": model.fingerprint(),
            "dtype": str(model.dtype),  # fingerprints are the same in any precision
            "device": model.device.type,
            "seed": seed,
            "torch": torch.__version__,
        }
    )
