"""The stages of CPE's training (erasing, attack, erasing, ...) and their learning rates."""

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pydantic import Field, model_validator
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from expunge.method.base import Trained
from expunge.methods.cpe.student import GateStudent

COUNTS = ("rounds", "first_iterations", "later_iterations", "attack_iterations")
"""The settings that decide how many steps there are."""


class Stage(NamedTuple):
    """Consecutive steps with one goal and one learning-rate curve."""

    number: int
    attack: bool
    start: int
    length: int
    lr: float
    warmup: int
    cycles: int


def lengths(
    *,
    rounds: int,
    first_iterations: int,
    later_iterations: int,
    attack_iterations: int,
    last: bool,
) -> Iterator[tuple[bool, int]]:
    """For each stage, whether it is an attack, and its number of steps.

    With ``last``, training ends with an attack.
    """
    for number in range(rounds):
        yield False, later_iterations if number else first_iterations
        if attack_iterations and (last or number + 1 < rounds):
            yield True, attack_iterations


def restarting(stage: Stage, step: int) -> float:
    """The learning rate's factor in a step: linear warm-up, then cosines with hard restarts."""
    if step < stage.warmup:
        return step / stage.warmup
    progress = (step - stage.warmup) / max(1, stage.length - stage.warmup)
    return 0.0 if progress >= 1 else (1 + math.cos(math.pi * (stage.cycles * progress % 1))) / 2


class TrainingStages(Trained[GateStudent]):
    """The settings of the stages, and what follows from them."""

    rounds: int = Field(5, ge=1)
    """Number of erasing stages; an attack comes between any two."""
    first_iterations: int = Field(1800, ge=1)
    """Optimiser steps of the first erasing stage."""
    later_iterations: int = Field(450, ge=1)
    """Optimiser steps of each later erasing stage."""
    attack_iterations: int = Field(450, ge=0)
    """Optimiser steps of each attack; 0 leaves out the attacks."""
    iterations: int = Field(5400, ge=1)
    """Optimiser steps of all stages, computed from ``rounds`` and ``*_iterations``."""
    lr: float = Field(3e-4, gt=0)
    """Learning rate of the first erasing stage."""
    later_lr: float = Field(3e-5, gt=0)
    """Learning rate of the later erasing stages."""
    attack_lr: float = Field(0.01, gt=0)
    """Learning rate of the attacks."""
    lr_warmup: int = Field(5, ge=0)
    """Warm-up steps of each erasing stage."""
    first_cycles: int = Field(2, ge=1)
    """Cosine cycles of the learning rate in the first erasing stage."""
    cycles: int = Field(1, ge=1)
    """Cosine cycles of the learning rate in each later erasing stage."""
    attack_warmup: int = Field(5, ge=0)
    """Warm-up steps of each attack."""
    attack_cycles: int = Field(1, ge=1)
    """Cosine cycles of the learning rate in each attack."""

    @model_validator(mode="before")
    @classmethod
    def _counted(cls, values: Any) -> Any:
        """The settings with ``iterations``, the steps of all stages together."""
        if not isinstance(values, Mapping):
            return values
        try:
            settings = {
                name: int(values.get(name, cls.model_fields[name].default)) for name in COUNTS
            }
        except (TypeError, ValueError):
            return values  # the fields' own checks name the fault
        last = values.get("fidelity") == "original"
        total = sum(length for _, length in lengths(**settings, last=last))
        if int(values.get("iterations", total)) != total:
            raise ValueError(
                f"iterations: {values['iterations']}, but the stages have {total} steps; set "
                f"{', '.join(COUNTS)} instead"
            )
        return {**values, "iterations": max(1, total)}

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Erasing, attack, erasing, ... The released program ends with an attack."""
        made: list[Stage] = []
        start = 0
        counts = {name: getattr(self, name) for name in COUNTS}
        for number, (attack, length) in enumerate(
            lengths(**counts, last=self.fidelity == "original")
        ):
            curve = (self.later_lr, self.lr_warmup, self.cycles)
            if attack:
                curve = (self.attack_lr, self.attack_warmup, self.attack_cycles)
            elif not number:
                curve = (self.lr, self.lr_warmup, self.first_cycles)
            made.append(Stage(number, attack, start, length, *curve))
            start += length
        return tuple(made)

    def stage(self, step: int) -> int:
        return bisect_right([stage.start for stage in self.stages], step) - 1

    def pace(self, optimizer: Optimizer, steps: int) -> LambdaLR:
        """In each stage a warm-up, then cosines to 0; gates and shifts take turns."""

        def factor(attack: bool, step: int) -> float:
            stage = self.stages[self.stage(min(step, steps - 1))]
            if stage.attack != attack:
                return 0.0
            base = self.attack_lr if attack else self.lr
            return stage.lr / base * restarting(stage, step - stage.start)

        return LambdaLR(
            optimizer,
            [
                lambda step, attack=group["attack"]: factor(attack, step)  # type: ignore[misc]
                for group in optimizer.param_groups
            ],
        )

    def groups(self, student: GateStudent) -> list[dict[str, Any]]:
        gates = [weight for name, weight in student.weights.items() if name != "shifts"]
        found = [student.weights[name] for name in ("shifts",) if name in student.weights]
        return [
            {"params": gates, "lr": self.lr, "attack": False},
            *({"params": [one], "lr": self.attack_lr, "attack": True} for one in found),
        ]
