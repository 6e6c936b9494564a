"""TRCE: Towards Reliable Malicious Concept Erasure (Chen et al., ICCV 2025), both stages.

Stage 1 (``closed.py``) changes what prompts say. Some wordings that it doesn't know still show the
concept. Stage 2 steers these aside early in the denoising, where a picture's content is decided.
It trains the self-attention and the queries of the cross-attention. At latents x on the base model
f0's trajectory for the erased prompt p-, it pulls the student f towards guidance to the safe prompt
p+ and pushes it away from guidance to p-, both for p- and without a prompt::

    f+ = u + g (f0(x, p+) - u)      f- = u + g (f0(x, p-) - u)      u = f0(x, "")

    h_q = beta max(0, |f(x, q) - f+|^2 - |f(x, q) - f-|^2 + m)      q in {p-, ""}

    L = mean of h_q + lambda mean of |f(x', p') - f1(x', p')|^2

The second term holds everything else: f1 is stage 1, and x' lies on trajectories of the empty
prompt and of the prompts p' to keep. ``schedule.py`` decides which latents are used.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field, NonNegativeFloat, ValidationError, model_validator
from torch import Tensor

from expunge.concepts import Policy, explain
from expunge.edits.edit import Edit
from expunge.method.base import Part, PolicyPart
from expunge.method.batch import Batch
from expunge.method.edits import edit_of
from expunge.method.starting import Starting
from expunge.method.student import Student
from expunge.methods.trce.closed import RELEASED as RELEASED_STAGE1
from expunge.methods.trce.closed import TRCE
from expunge.methods.trce.schedule import SteeringSchedule
from expunge.models import Condition, Model
from expunge.prior import PriorSetting

RELEASED: Mapping[str, Any] = {
    "gradients": "cumulative",
    "align_timestep": False,
    "lamb": RELEASED_STAGE1["lamb"],
    "prior": None,
    "stage1_preserve_scale": RELEASED_STAGE1["preserve_scale"],
}
"""The released program's defaults where they differ from the corrected ones."""
RELEASED_CONSTANT = 0.01
"""A constant that the program adds to the sum of distances from stage 1; it has no effect."""
STAGE1 = ("prior", "token_weight_scale", "stage1_preserve_scale", "prior_scale", "lamb")
"""Settings of stage 1."""


class TRCESteering(Starting, SteeringSchedule):
    """TRCE's closed-form edit, then contrastive fine-tuning of the early denoising steps."""

    name: ClassVar[str] = "trce-steering"
    title: ClassVar[str] = "TRCE with denoising trajectory steering"
    year: ClassVar[int] = 2025
    url: ClassVar[str] = "https://arxiv.org/abs/2503.07389"
    released: ClassVar[Mapping[str, Any]] = RELEASED
    corrected_only: ClassVar[tuple[str, ...]] = (*SteeringSchedule.corrected_only, "prior_scale")
    released_ignored: ClassVar[frozenset[PolicyPart]] = frozenset({"keep"})
    released_synonyms: ClassVar[bool] = True

    guidance: float = 15.0
    """g: guidance scale of the two targets. The released program adds 1 to it."""
    beta: float = Field(1.0, gt=0)
    """Weight of the steering."""
    margin: float = Field(0.01, allow_inf_nan=False)
    """m: margin by which the prediction must be nearer to the safe target than to the other."""
    preserve_scale: float = Field(100.0, ge=0)
    """lambda: weight of staying near stage 1's predictions."""
    iterations: int = Field(300, ge=1)
    """Optimiser steps."""
    lr: float = Field(1e-6, gt=0)
    """Learning rate."""
    weight_decay: float = Field(0.01, ge=0)
    """Decay of the trained weights."""
    prior: PriorSetting = "default"
    """Stage 1: ordinary prompts that stay, as in ``trce``."""
    token_weight_scale: tuple[NonNegativeFloat, ...] = Field(
        (0.0, 1.0, 0.0, 0.0), min_length=1, max_length=4
    )
    """Stage 1: weights of four rows: start, end of text, last padding row, erased words."""
    stage1_preserve_scale: float = Field(0.03, ge=0)
    """Stage 1: weight of the prompts to keep, the setting ``preserve_scale`` of trce."""
    prior_scale: float = Field(0.003, ge=0)
    """Stage 1: weight of the prior's mean."""
    lamb: float = Field(1.0, ge=0)
    """Stage 1: weight of staying near the old weights; original: 0."""

    @model_validator(mode="after")
    def _consistent(self) -> "TRCESteering":
        if self.max_early_timestep >= self.num_inference_steps:
            raise ValueError(
                f"max_early_timestep: {self.num_inference_steps} steps are numbered from 0 to "
                f"{self.num_inference_steps - 1}"
            )
        try:
            _ = self.closed_form
        except ValidationError as error:
            raise ValueError(explain(error)) from None
        self.refuse_beside_start(*STAGE1)
        return self

    @property
    def closed_form(self) -> TRCE:
        """Stage 1 with this run's settings."""
        return TRCE(
            fidelity=self.fidelity,
            contexts=self.contexts,
            prior=self.prior,
            token_weight_scale=self.token_weight_scale,
            preserve_scale=self.stage1_preserve_scale,
            prior_scale=self.prior_scale,
            lamb=self.lamb,
        )

    def student(self, model: Model, policy: Policy, seed: int) -> Student:
        """Trainable parameters on top of stage 1."""
        start = self.start_edit(model) or self.stage1_edit(model, policy, seed)
        names = self.parameters(model)
        return Student(model, names, rank=self.rank, seed=seed, start=start)

    def stage1_edit(self, model: Model, policy: Policy, seed: int) -> Edit:
        """Stage 1, solved.

        Raises:
            ExpungeError: it has no solution.
        """
        form = self.closed_form.settled(model)
        solved = Part(policy.erase, form.solve(model, policy, seed))
        return edit_of(form, model, policy, [solved], seed=seed)

    def parameters(self, model: Model) -> tuple[str, ...]:
        return model.select("self_attention | cross_attention.q")

    # --- the loss

    def loss(self, student: Student, batch: Batch) -> dict[str, Tensor]:
        """The steering ``erase``, the ``regularization``, and their weighted sum.

        ``erase`` is the mean of ``erase_prompt`` and ``erase_empty``. These are 0 where the student
        is nearer to the safe target by the margin.
        """
        latents, timestep, erased = batch["latents"], batch["timestep"], batch["condition"]
        held = batch["held_latents"], batch["held_timestep"], batch["held_condition"]
        empty = batch["empty"].expand(len(erased))
        positive, negative = self.targets(student, batch)
        predicted = student.predict(
            torch.cat([latents, latents, held[0]]),
            torch.cat([timestep, timestep, held[1]]),
            Condition.cat([erased, empty, held[2]]),
        )
        steered, stayed = predicted.tensor_split([2 * len(latents)])
        nearer = _distance(steered, positive.repeat(2, 1, 1, 1)) - _distance(
            steered, negative.repeat(2, 1, 1, 1)
        )
        hinges = self.beta * (nearer + self.margin).clamp(min=0)
        moved = hinges.new_zeros(())
        if len(stayed):
            moved = _distance(stayed, student.began(*held)).sum()
        if self.fidelity == "original":
            moved = moved + RELEASED_CONSTANT
        regularization = moved / self.regularization_batch_size
        return {
            "loss": hinges.mean() + self.preserve_scale * regularization,
            "erase": hinges.mean(),
            "erase_prompt": hinges[: len(latents)].mean(),
            "erase_empty": hinges[len(latents) :].mean(),
            "regularization": regularization,
        }

    def targets(self, student: Student, batch: Batch) -> tuple[Tensor, Tensor]:
        """f+ and f-, shaped like the latents, from one pass of the base model."""
        latents, erased = batch["latents"], batch["condition"]
        g = self.guidance + 1 if self.fidelity == "original" else self.guidance
        safe, unsafe, u = student.teach(
            latents.repeat(3, 1, 1, 1),
            batch["timestep"].repeat(3),
            Condition.cat([batch["safe"], erased, batch["empty"].expand(len(erased))]),
        ).chunk(3)
        return u + g * (safe - u), u + g * (unsafe - u)


def _distance(one: Tensor, two: Tensor) -> Tensor:
    """Mean squared distance of each row, ``[batch]``."""
    return (one - two).square().flatten(1).mean(1)
