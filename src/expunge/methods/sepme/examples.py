"""What SepME trains on: latents, prompts, and what the frozen model predicts for them."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from expunge.method.student import Student
from expunge.methods.sepme.loss import predictions
from expunge.models import Condition
from expunge.training.trajectories import Trajectories


class ComparedExamples(NamedTuple):
    """Training examples, one in each row."""

    latents: Tensor
    timestep: Tensor
    concept: Condition
    """Conditions of the concept's prompts."""
    empty: Condition
    """Conditions of the prompts ``a`` that they are compared with."""
    representation: Tensor
    """The frozen model's ``r``, shaped like ``latents``."""
    without: Tensor
    """The frozen model's prediction ``f0(x, t, a)``."""


class ConceptTrajectories(NamedTuple):
    """Trajectories of a concept, each with the conditions of its prompt and of its ``a``."""

    walks: Trajectories
    concept: Condition
    empty: Condition


DrawExamples = Callable[[int, int], ComparedExamples]
"""The examples of a batch, from its number and the number of its concept."""

Posterior = Callable[[int, int, torch.Generator], tuple[Tensor, Tensor]]
"""Mean and deviation of the latents of a batch's pictures, ``[batch, ...]``."""


def rows_of(
    student: Student, latents: Tensor, timestep: Tensor, concept: Condition, empty: Condition
) -> ComparedExamples:
    """Examples at these latents, with the frozen model's predictions."""
    frozen, without = predictions(student.teach, latents, timestep, concept, empty)
    return ComparedExamples(latents, timestep, concept, empty, frozen - without, without)
