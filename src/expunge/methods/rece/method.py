"""RECE: Reliable and Efficient Concept Erasure (Gong et al., ECCV 2024).

After UCE, some embeddings still bring the concept back: with them, the edited projections ``W``
answer as the base projections ``W0`` answer the erased rows ``E``. They have a closed form::

    C' = argmin  sum_W |W C'^T - W0 E^T|^2  +  r |C'|^2  =  E S^T (H + r I)^-1
    H = sum_W W^T W        S = sum_W W^T W0

RECE moves these adversarial embeddings to the anchor with UCE's equation, and repeats both steps
``epochs`` times.

UCE multiplies every projection by one matrix, ``W = W0 M``, and so does each of these edits. The
projections therefore matter only through their Gram matrix ``G = sum W0^T W0``, summed once::

    H = M^T G M            S = M^T G
"""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor

from expunge.algebra.ridge import Rows, kept_rows
from expunge.concepts import Concept, Context, Kind, Policy
from expunge.edits.payloads import Change
from expunge.errors import ExpungeError
from expunge.method.base import Need, PolicyPart
from expunge.method.presets import preset
from expunge.method.starting import Starting
from expunge.methods.kept import KeepsPrior
from expunge.methods.rece.closed import (
    Epoch,
    Erased,
    Penalty,
    Sums,
    Technique,
    adversarial,
    paired_rows,
    projections,
    stage_of,
)
from expunge.methods.uce.method import UCE
from expunge.models import Model


class Strength(NamedTuple):
    """How far RECE goes. The concept's kind decides it unless the settings do."""

    regular_scale: float
    epochs: int


BY_KIND: dict[Kind, str] = {
    "unsafe": "unsafe",
    "style": "style",
    "object": "object",
    "character": "object",
}
"""The preset that gives a kind its strength: the released script's default for that kind."""


class RECE(Starting, KeepsPrior):
    """UCE, then rounds that find adversarial embeddings in closed form and erase them."""

    name: ClassVar[str] = "rece"
    title: ClassVar[str] = "Reliable and Efficient Concept Erasure"
    year: ClassVar[int] = 2024
    url: ClassVar[str] = "https://arxiv.org/abs/2407.12383"
    needs: ClassVar[frozenset[Need]] = frozenset({"text"})
    corrected_only: ClassVar[tuple[str, ...]] = ("contexts", "prior_scale")

    epochs: int | None = Field(None, ge=0)
    """Rounds after UCE. The default comes from the concept's kind; several kinds take the
    largest."""
    embedding: Literal["zero", "surrogate", "target"] = "zero"
    """What the adversarial embeddings stay near: ``zero``, the erased rows (``surrogate``), or the
    words in ``targets`` (``target``)."""
    regular_scale: float | None = Field(None, gt=0)
    """r: weight of keeping the adversarial embeddings near what ``embedding`` says. The default
    comes from the concept's kind; several kinds take the smallest."""
    regularization: Literal["outputs", "embedding", "both"] | None = None
    """With ``embedding="surrogate"``: stay near the erased rows' ``outputs``, near the rows
    themselves (``embedding``), or ``both``. Default: both; original: outputs."""
    targets: tuple[str | None, ...] = ()
    """With ``embedding="target"``: the words that each concept's embeddings stay near, one for
    each concept, in order."""
    technique: Technique = "replace"
    """``tensor`` removes the adversarial outputs' own direction from the targets of the epochs."""
    templates: bool = False
    """Erase the words in template sentences of their kind too; original: in UCE only."""
    contexts: tuple[Context, ...] = ()
    """Sentences with ``{}`` for the words, instead of the templates."""
    preserve: tuple[str, ...] | None = None
    """Keep exactly these prompts in the epochs. Default: the policy's and the empty prompt."""
    erase_scale: float = Field(1.0, gt=0)
    """a: weight of the adversarial rows in the epochs."""
    preserve_scale: float | None = Field(None, ge=0)
    """p: weight of the rows to keep in the epochs. Default: UCE's default; original: 0.1."""
    prior_scale: float = Field(0.05, ge=0)
    """Weight of the prior in UCE and in the epochs, as in UCE."""
    lamb: float = Field(0.1, gt=0)
    """lam: weight of staying near the weights at the start of an epoch."""
    uce_technique: Technique = "replace"
    """The ``technique`` setting of UCE."""
    uce_preserve: tuple[str, ...] | None = None
    """The ``preserve`` setting of UCE."""
    uce_erase_scale: float = Field(1.0, gt=0)
    """The ``erase_scale`` setting of UCE."""
    uce_preserve_scale: float | None = Field(None, ge=0)
    """The ``preserve_scale`` setting of UCE."""
    uce_lamb: float = Field(0.5, gt=0)
    """The ``lamb`` setting of UCE."""

    @model_validator(mode="after")
    def _consistent(self) -> "RECE":
        if self.regularization and self.embedding != "surrogate":
            raise ValueError('regularization: only with embedding="surrogate"')
        if self.targets and self.embedding != "target":
            raise ValueError('targets: only with embedding="target"')
        alone = ("templates",) if self.fidelity == "original" else ()
        of_uce = (name for name in type(self).model_fields if name.startswith("uce_"))
        self.refuse_beside_start(*of_uce, *alone)
        return self

    @property
    def ignored(self) -> frozenset[PolicyPart]:
        """Prompts to keep, where every stage has a list of its own."""
        listed = self.preserve is not None and (self.start or self.uce_preserve is not None)
        return super().ignored | ({"keep"} if listed else set())

    def solve(self, model: Model, policy: Policy, seed: int) -> Change:
        """The change after the last epoch: one matrix for all projections, or one for each.

        With ``start``, what the epochs add to it.

        Raises:
            ExpungeError: nothing is added, or a system can't be solved.
        """
        start = self.start_edit(model)
        stage = stage_of(start, model) if start else self.uce.solve(model, policy, seed)
        rounds = deque(self.rounds(model, policy, stage), maxlen=1)
        if start is None:
            return rounds[0].projections.payload() if rounds else stage
        if not rounds:
            raise ExpungeError("epochs: 0 would leave start as it is; do at least 1")
        return rounds[0].projections.added()

    def solve_epochs(self, model: Model, policy: Policy, seed: int) -> Iterator[Change]:
        """The changes of the base after the first stage and after each epoch; see ``best_epoch``.

        Of ``start``, only what it does to the keys and values is part of them.
        """
        start = self.start_edit(model)
        stage = stage_of(start, model) if start else self.uce.solve(model, policy, seed)
        yield stage
        for done in self.rounds(model, policy, stage):
            yield done.projections.payload()

    def erased_prompts(self, policy: Policy) -> Iterator[str]:
        return (self._edit(policy) if self.start else self.uce).erased_prompts(policy)

    def kept_prompts(self, policy: Policy) -> tuple[str, ...]:
        first = () if self.start else self.uce.kept(policy)
        return (*first, *self._edit(policy).kept(policy))

    @property
    def uce(self) -> UCE:
        """Stage 0: UCE with its own settings."""
        return UCE(
            fidelity=self.fidelity,
            prior=self.prior,
            prior_scale=self.prior_scale,
            technique=self.uce_technique,
            templates=self.templates,
            contexts=self.contexts,
            preserve=self.uce_preserve,
            erase_scale=self.uce_erase_scale,
            preserve_scale=self.uce_preserve_scale,
            lamb=self.uce_lamb,
        )

    def rounds(self, model: Model, policy: Policy, stage: Change) -> Iterator[Epoch]:
        """Adversarial embeddings and edited projections of each epoch that follows ``stage``.

        Raises:
            ExpungeError: a concept lacks its target, or a system can't be solved.
        """
        scale, epochs = self._strength(policy)
        if not epochs:
            return
        edit, targets = self._edit(policy), self._targets(policy)
        concepts = [
            self._erased(model, edit, concept, target)
            for concept, target in zip(policy.erase, targets, strict=True)
        ]
        kept = edit.stays(model, policy).rows
        if self.fidelity == "corrected":  # what is moved already must not come back
            kept = kept_rows((kept, *(c.rows for c in concepts)), 1.0, model.text_width)
        now = projections(model, stage, self.technique)
        for _ in range(epochs):
            sums = now.sums
            found = tuple(self._adversarial(sums, concept, scale) for concept in concepts)
            moved = [
                Rows(rows, anchor, torch.full_like(rows[:, 0], self.erase_scale))
                for concept, embeddings in zip(concepts, found, strict=True)
                for rows, anchor in concept.paired(embeddings)
            ]
            now = now.edited(moved, kept, self.lamb)
            yield Epoch(found, now)

    def _strength(self, policy: Policy) -> Strength:
        """r and the number of epochs: from the settings, else from the presets of the kinds."""
        kinds = [BY_KIND[concept.kind] for concept in policy.erase]
        if kinds.count("unsafe") > 1:
            kinds = ["unsafe-list" if kind == "unsafe" else kind for kind in kinds]
        usual = [Strength(**preset(RECE, kind).values(self.fidelity)) for kind in kinds]
        return Strength(
            self.regular_scale or min(strength.regular_scale for strength in usual),
            max(strength.epochs for strength in usual) if self.epochs is None else self.epochs,
        )

    def _targets(self, policy: Policy) -> Sequence[str | None]:
        """The words that each concept's embeddings stay near, ``None`` where there are none.

        Raises:
            ExpungeError: a concept lacks its words, or their number isn't that of the concepts.
        """
        targets, count = self.targets or (None,) * len(policy.erase), len(policy.erase)
        if len(targets) != count:
            raise ExpungeError(f"targets: {len(targets)} given for {count} concepts; give one each")
        if self.embedding == "target" and self.fidelity == "corrected" and None in targets:
            lacking = policy.erase[targets.index(None)].target
            raise ExpungeError(
                f'targets: none for {lacking!r}; name one per concept, or use embedding="zero"'
            )
        return targets

    def _edit(self, policy: Policy) -> UCE:
        """The edit of an epoch: the prompts it erases, what it keeps, and the weights of both."""
        original, preserve, scale = self.fidelity == "original", self.preserve, self.preserve_scale
        if original and preserve is None and all(c.kind == "unsafe" for c in policy.erase):
            preserve = (*(" " for _ in policy.erase), *policy.kept)
        return UCE(
            fidelity=self.fidelity,
            prior=self.prior,
            prior_scale=self.prior_scale,
            templates=self.templates and not original,
            contexts=self.contexts,
            preserve=preserve,
            erase_scale=self.erase_scale,
            preserve_scale=0.1 if original and scale is None else scale,
            lamb=self.lamb,
        )

    def _erased(self, model: Model, edit: UCE, concept: Concept, target: str | None) -> Erased:
        """Rows of a concept's prompts, with those of their anchors and of its target."""
        others = [concept]
        if target is not None:
            others.append(concept.model_copy(update={"anchor": target}))
        pairs = zip(*(edit.pairs_of(other) for other in others), strict=True)
        prompts = ([same[0].erase, *(pair.anchor for pair in same)] for same in pairs)
        whole = self.fidelity == "original"
        parts = (paired_rows(model, own, whole=whole) for own in prompts)
        rows, anchors, *targets = zip(*parts, strict=True)
        held = torch.cat(targets[0]) if targets else None
        return Erased(concept.target, torch.cat(rows), anchors, held)

    def _adversarial(self, sums: Sums, concept: Erased, scale: float) -> Tensor:
        """C' of one concept, ``[rows, width]`` float64."""
        rows = concept.rows.double()
        try:
            return adversarial(sums, rows, self._penalty(rows, concept.target, scale))
        except ExpungeError:
            raise ExpungeError(
                f"{concept.words}: its adversarial embedding can't be solved; use fewer epochs, a "
                'larger regular_scale, or a regularization other than "outputs"'
            ) from None

    def _penalty(self, rows: Tensor, target: Tensor | None, scale: float) -> "Penalty":
        """What keeps the adversarial embeddings of ``rows`` ``[rows, width]`` in place.

        A released target without words falls back to the rows and their outputs.
        """
        if self.embedding == "zero":
            return Penalty(torch.zeros_like(rows), scale)
        if target is not None:
            return Penalty(target.double(), scale)
        original = self.fidelity == "original" and self.embedding == "surrogate"
        terms = self.regularization or ("outputs" if original else "both")
        return Penalty(
            rows,
            near=0 if terms == "outputs" else scale,
            outputs=0 if terms == "embedding" else scale,
        )
