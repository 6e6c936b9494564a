"""SepCE: separable concept erasure, the second half of SepME (Zhao et al., arXiv 2402.05947).

The keys and values of the cross-attention see only the rows ``e`` of a prompt's embedding. So a
change ``dW_k`` that erases the concept ``k`` leaves a prompt exactly as it is if ``dW_k e = 0`` for
all its rows. Stack the rows of the empty prompt, of all *other* concepts and of the prompts to
keep, and let ``S_k`` be a basis of everything orthogonal to them::

    dW_k = C_k S_k        C_k is trained with CiE's loss, S_k is fixed

Then no concept's change affects another concept. Each can be trained by itself, and any subset of
the changes, ``W = W0 + sum dW_k``, erases just its concepts: to restore one, leave its part out.

``corrected``, the default, trains only those directions of the null space in which the concept's
own rows lie (``basis="reduced"``). All other directions would change no output of these prompts, so
nothing is lost and the change is as small as possible. The null space is computed by orthogonal
decompositions in float64. ``original`` has two programs: ``separable`` (SRS_ME) trains one concept
in a run, ``joint`` (SepCE of January 2024) trains several at once.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from expunge.algebra.null_space import TOLERANCE, fitting, leading, null_space, rref
from expunge.concepts import Policy
from expunge.errors import ExpungeError
from expunge.method.base import Part, PolicyPart
from expunge.method.batch import Batch
from expunge.method.run import Run
from expunge.methods.sepme.bases import Given, beginnings, crowded, rows, rows_naming
from expunge.methods.sepme.examples import ComparedExamples
from expunge.methods.sepme.loss import FIRST_TEST, direction, momentum, predictions
from expunge.methods.sepme.shifts import JointShifts, Shifts
from expunge.methods.sepme.training import RELEASED, SepME
from expunge.models import Condition, Model

ORIGINAL: Mapping[str, Any] = {
    **RELEASED,
    "scale_factor": 1e-2,
    "max_base": 0,
    "basis": "rref",
}
"""Defaults of the released program."""


class SepCE(SepME[Shifts]):
    """One change for each concept, in the null space of everything else; each is removable."""

    name: ClassVar[str] = "sepce"
    title: ClassVar[str] = "Separable concept erasure (SepME)"
    released: ClassVar[Mapping[str, Any]] = ORIGINAL
    released_ignored: ClassVar[frozenset[PolicyPart]] = frozenset({"anchor"})
    corrected_only: ClassVar[tuple[str, ...]] = (*SepME.corrected_only, "protect", "tolerance")

    variant: Literal["separable", "joint"] = "separable"
    """The released program to follow. ``joint``, of January 2024, trains all concepts in each
    step."""
    train_method: Literal["x-strict"] = "x-strict"
    """Only the keys and values of the cross-attention: nothing else sees the words alone."""
    lr: float = Field(1e-3, gt=0)
    """Learning rate of the coefficients."""
    basis: Literal["reduced", "orthonormal", "rref"] = "reduced"
    """Directions of each change: the part of the null space that the concept's own rows lie in
    (``reduced``), all of it (``orthonormal``), or all of it by Gaussian elimination (``rref``)."""
    max_base: int = Field(32, ge=0)
    """Maximum number of directions of each change; 0 is all. ``reduced`` takes the directions that
    hold most of the concept's rows, the others take the first ones. Default for those: 0."""
    scale_factor: float = Field(1.0, gt=0)
    """beta: length of each direction. With Adam, only ``lr`` times this matters."""
    protect: int | None = Field(None, ge=0)
    """How many of the kept words, from the first on, no change may touch. Default: as many as leave
    half of all directions free. ``preserve_scale`` holds all kept words."""
    tolerance: float = Field(TOLERANCE, ge=1e-7, lt=1)
    """Don't protect directions in which the protected rows are shorter than this share of the
    longest one. The default is exact in single precision; 0.01 leaves room for many more words."""
    thresholds: tuple[float, ...] = ()
    """The ``threshold`` of each concept, if they differ."""

    @model_validator(mode="before")
    @classmethod
    def _whole_basis(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("basis", "reduced") == "reduced":
            return values
        return {"max_base": 0, **values}

    @model_validator(mode="after")
    def _separable(self) -> "SepCE":
        if self.variant == "joint" and self.fidelity == "corrected":
            raise ValueError('variant: "joint" needs fidelity="original"')
        if self.variant == "joint" and self.accumulation > 1:
            raise ValueError(
                "accumulation: the joint program takes one batch a step; leave it at 1"
            )
        return self

    def limit(self, turn: int) -> float:
        return self.thresholds[turn] if self.thresholds else self.threshold

    def fewest_steps(self, policy: Policy) -> int:
        """The joint program shows all concepts in each step."""
        return 1 if self.variant == "joint" else super().fewest_steps(policy)

    def student(self, model: Model, policy: Policy, seed: int) -> Shifts:
        given, count = len(self.thresholds), len(policy.erase)
        if given not in (0, count):
            raise ExpungeError(f"thresholds: {given} for {count} concepts; give one for each")
        return self.shifts(model, self.bases(model, policy))

    def shifts(self, model: Model, bases: Sequence[Tensor]) -> Shifts:
        """The student for given directions, ``[directions, width]`` for each concept."""
        kind = JointShifts if self.variant == "joint" else Shifts
        return kind(model, self.parameters(model), [self.scale_factor * basis for basis in bases])

    def groups(self, student: Shifts) -> list[dict[str, Any]]:
        return [{"params": [weight for weight in student.weights.values() if weight.requires_grad]}]

    def parts(self, student: Shifts, policy: Policy) -> Sequence[Part]:
        """One part for each concept."""
        return [Part((concept,), student.part(turn)) for turn, concept in enumerate(policy.erase)]

    # --- loss

    def loss(self, student: Shifts, batch: Batch) -> dict[str, Tensor]:
        """CiE's loss with only the change of the batch's concept applied.

        A change that was trained alone erases alone, even if the others are removed.
        """
        if isinstance(student, JointShifts):
            return self._joint(student, batch)
        return super().loss(student.for_batch(batch), batch)

    def _joint(self, student: JointShifts, batch: Batch) -> dict[str, Tensor]:
        """The mean over concepts of ``w_k D_k + beta sum_j mean |C_kj|``, a row for each concept.

        ``w_k = |r'_1 r_1| / |r'_k r_k|`` balances the concepts and has no gradient. A concept that
        has met its stopping rule doesn't count.
        """
        count = len(student.bases)
        limits = [self.limit(turn) for turn in range(count)]
        student.settle(student.state["m"].new_tensor(limits), FIRST_TEST)
        own, empty = predictions(
            student.predict, *(batch[key] for key in ("latents", "timestep", "concept", "empty"))
        )
        frozen = batch["representation"]
        terms = direction(own - empty, frozen)
        sizes = ((own - empty) * frozen).flatten(1).norm(dim=1).detach()
        changes = torch.stack(
            [
                torch.stack([c.abs().mean() for c in student.coefficients(turn).values()]).sum()
                for turn in range(count)
            ]
        )
        each = sizes[0] / sizes * terms + self.reg_beta * changes
        loss = (student.active * each).sum() / student.active.sum()
        student.note(terms)
        return {"loss": loss, **{f"direction{turn}": terms[turn] for turn in range(count)}}

    def finished(self, history: Sequence[Mapping[str, float]]) -> bool:
        """Whether every concept meets its stopping rule now; for ``joint``, whether it ever has."""
        if self.variant == "separable" or not history:
            return super().finished(history)
        columns = [key for key in history[0] if key.startswith("direction")]
        return all(
            min(momentum(record[key] for record in history)[FIRST_TEST - 1 :], default=torch.inf)
            < self.limit(turn)
            for turn, key in enumerate(columns)
        )

    def batches(self, run: Run[Shifts], numbers: Iterable[int]) -> Iterator[Batch]:
        """As in CiE; for ``joint``, one row for each concept."""
        if self.variant == "separable":
            yield from super().batches(run, numbers)
            return
        draw = self._picture_examples(run)
        for number in numbers:
            drawn = [draw(number, turn) for turn in range(len(run.policy.erase))]
            columns = zip(ComparedExamples._fields, zip(*drawn, strict=True), strict=True)
            yield {name: joined(parts, run.model.device) for name, parts in columns}

    # --- directions

    def bases(self, model: Model, policy: Policy) -> list[Tensor]:
        """``S_k`` of each concept, ``[directions, width]`` float64.

        Raises:
            ExpungeError: not everything to protect fits; the message says how much does.
        """
        given = self._given(model, policy)
        spaces = given.spaces(self.tolerance)
        if (turn := given.first_blind(spaces)) is not None:
            names = [concept.target for concept in policy.erase]
            suggest = self.fidelity == "corrected"
            raise ExpungeError(crowded(given, names, turn, self.tolerance, suggest=suggest))
        if self.basis == "reduced":
            both = zip(given.own, spaces, strict=True)
            return [leading(own, space, self.max_base) for own, space in both]
        if self.basis == "rref":
            spaces = [
                rref(torch.cat(given.seen(turn)), self.tolerance) for turn in range(len(spaces))
            ]
        for concept, space in zip(policy.erase, spaces, strict=True):
            if self.max_base > len(space):
                raise ExpungeError(
                    f"max_base: {concept.target} has {len(space)} directions, not {self.max_base}"
                )
        return [space[: self.max_base or None] for space in spaces]

    def _given(self, model: Model, policy: Policy) -> Given:
        """The concepts' own rows, and the rows that the changes leave alone.

        The original uses bare words. When corrected, the training sentences count too, up to the
        end of their text: their padding would fill the space, and hardly differs from that of the
        bare words. What comes before the words in a sentence is protected, since many prompts
        share it.
        """
        prompts = [[prompt for prompt, _ in self.pairs(concept)] for concept in policy.erase]
        own = [rows(model, list(dict.fromkeys(listed))) for listed in prompts]
        if self.fidelity == "original":
            concepts = [rows(model, [concept.target]) for concept in policy.erase]
            return Given(own, rows(model, [""]), concepts, [rows(model, [w]) for w in policy.kept])
        sentences = [concept.sentences(self.contexts) for concept in policy.erase]
        everywhere = tuple(dict.fromkeys(chain(*sentences)))
        plain = list(dict.fromkeys(["", *(concept.replacement for concept in policy.erase)]))
        shared = torch.cat([rows(model, plain), *beginnings(model, everywhere)])
        concepts = [
            rows_naming(model, concept.phrases, its)
            for concept, its in zip(policy.erase, sentences, strict=True)
        ]
        kept = [
            partial(rows_naming, model, [words], its)
            for words, its in policy.kept_in(self.contexts).items()
        ]
        count = self.protect
        if count is None:
            within = null_space(torch.cat([shared, *concepts]), tolerance=self.tolerance)
            half = model.text_width // 2
            blocks = (block() for block in kept)
            count = fitting(blocks, within, lambda space: len(space) >= half, self.tolerance)
        return Given(own, shared, concepts, [block() for block in kept[:count]])


def joined(parts: Sequence[Tensor | Condition], device: torch.device) -> Tensor | Condition:
    """Rows of several concepts, stacked."""
    conditions = [part for part in parts if isinstance(part, Condition)]
    if conditions:
        return Condition.cat(conditions).to(device)
    return torch.cat([part for part in parts if isinstance(part, Tensor)]).to(device)
