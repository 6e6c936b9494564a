"""What SepCE trains: a separate change for each concept, along given directions.

dW_k = C_k S_k        C_k [out, directions] is trained, S_k [directions, width] never changes
"""

from collections.abc import Sequence
from copy import copy
from typing import Self

import torch
from torch import Tensor

from expunge.edits.payloads import LowRank
from expunge.method.batch import Batch
from expunge.method.student import Student
from expunge.models import Model


class Shifts(Student):
    """A student that changes each parameter by the sum of ``dW_k`` of the active concepts."""

    def __init__(self, model: Model, names: Sequence[str], bases: Sequence[Tensor]) -> None:
        """``bases`` has ``S_k`` of each concept, ``[directions, width]``."""
        self.bases = [basis.to(model.device, torch.float32) for basis in bases]
        self.turns: Sequence[int] = range(len(bases))
        """The active concepts; the others have no effect."""
        super().__init__(model, names)

    def for_batch(self, batch: Batch) -> Self:
        """A student with only the batch's concept active, if the batch belongs to one."""
        alone = copy(self)
        if "turn" in batch:
            alone.turns = (round(batch["turn"].item()),)
        return alone

    def _fresh(self, name: str, seed: int) -> dict[str, Tensor]:
        """Coefficients of 0, which change nothing."""
        rows = len(self.before(name))
        return {
            f"{turn}:{name}": torch.zeros(rows, len(basis)) for turn, basis in enumerate(self.bases)
        }

    def coefficients(self, turn: int) -> dict[str, Tensor]:
        """``C_k`` of one concept, by parameter, ``[out, directions]`` each."""
        return {name: self.weights[f"{turn}:{name}"] for name in self.names}

    def change(self, name: str) -> Tensor:
        parts = (self.weights[f"{turn}:{name}"] @ self.bases[turn] for turn in self.turns)
        return torch.stack([*parts]).sum(0)

    def value(self, name: str) -> Tensor:
        return self.before(name) + self.change(name)

    def part(self, turn: int) -> LowRank:
        """What training has added for one concept."""
        return _factors(self.coefficients(turn), self.bases[turn])


class JointShifts(Shifts):
    """Shifts that are trained together; each is stored when its concept meets its stopping rule.

    The weights include all that a resumed run needs: ``m`` of each concept, the number of steps,
    which rules have been met, and the stored coefficients.
    """

    def __init__(self, model: Model, names: Sequence[str], bases: Sequence[Tensor]) -> None:
        super().__init__(model, names, bases)
        count = len(bases)
        taken = {f"taken:{key}": torch.zeros_like(c.detach()) for key, c in self.weights.items()}
        self.state = {key: torch.zeros(count, device=model.device) for key in ("m", "steps", "met")}
        self.weights |= {**taken, **self.state}

    @property
    def active(self) -> Tensor:
        """1 where the rule hasn't been met, ``[concepts]``."""
        return 1 - self.state["met"]

    @torch.no_grad()
    def note(self, directions: Tensor) -> None:
        """Update ``m`` with the ``D`` of a step, ``[concepts]``."""
        m, steps = self.state["m"], self.state["steps"]
        m.copy_(torch.where(steps == 0, directions, 0.9 * m + 0.1 * directions))
        steps += 1

    @torch.no_grad()
    def settle(self, thresholds: Tensor, first: int) -> None:
        """Store the coefficients of each concept that now meets its rule.

        The rule is that ``m`` is below the threshold, from step ``first`` on. ``thresholds`` is
        ``[concepts]``.
        """
        below = (self.state["m"] < thresholds) & (self.state["steps"] >= first)
        for turn in (below & (self.active > 0)).nonzero().flatten().tolist():
            self.state["met"][turn] = 1
            for name, coefficients in self.coefficients(turn).items():
                self.weights[f"taken:{turn}:{name}"].copy_(coefficients)

    def part(self, turn: int) -> LowRank:
        if not self.state["met"][turn]:
            return super().part(turn)
        taken = {name: self.weights[f"taken:{turn}:{name}"] for name in self.names}
        return _factors(taken, self.bases[turn])


def _factors(coefficients: dict[str, Tensor], basis: Tensor) -> LowRank:
    up = {name: matrix.detach().clone() for name, matrix in coefficients.items()}
    return LowRank(up, dict.fromkeys(up, basis))
