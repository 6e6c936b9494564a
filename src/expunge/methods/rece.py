"""RECE: Reliable and Efficient Concept Erasure (Gong et al., ECCV 2024).

After UCE there still are embeddings that make the edited projections ``W`` answer as the base
projections ``W0`` answer the erased rows ``E``. They have a closed form,

    C' = argmin  sum_W |W C'^T - W0 E^T|^2  +  r |C'|^2  =  E S^T (H + r I)^-1
    H = sum_W W^T W        S = sum_W W^T W0

and RECE moves them to the anchor with the equation of UCE, and does so again, ``epochs`` times.

UCE multiplies every projection by one matrix, ``W = W0 M``, and so does each of these edits. So
the projections enter through their Gram matrix ``G = sum W0^T W0`` alone, which is summed once:

    H = M^T G M            S = M^T G
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import takewhile
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor

from expunge.algebra.ridge import (
    NEGLIGIBLE,
    Rows,
    SharedFactors,
    gram,
    joined,
    kept_rows,
    shared_factors,
    solve,
)
from expunge.concepts import Concept, Context, Kind, Policy
from expunge.edits.payloads import Change, Dense, LowRank, SharedMatrix
from expunge.edits.ridge import Ridge
from expunge.errors import ExpungeError
from expunge.method.base import Method, Need
from expunge.method.presets import preset
from expunge.methods.uce.method import UCE, tensor_edit
from expunge.models import Model

Technique = Literal["replace", "tensor"]


class Strength(NamedTuple):
    """How far RECE goes; what a kind decides where nothing is given."""

    regular_scale: float
    epochs: int


BY_KIND: dict[Kind, str] = {
    "unsafe": "unsafe",
    "style": "style",
    "object": "object",
    "character": "object",
}
"""The preset of a kind when none is named: the default of the released script for it."""


class RECE(Method):
    """UCE, then rounds of closed-form adversarial embeddings and edits against them."""

    name: ClassVar[str] = "rece"
    title: ClassVar[str] = "Reliable and Efficient Concept Erasure"
    year: ClassVar[int] = 2024
    url: ClassVar[str] = "https://arxiv.org/abs/2407.12383"
    needs: ClassVar[frozenset[Need]] = frozenset({"text"})
    corrected_only: ClassVar[tuple[str, ...]] = ("contexts",)

    epochs: int | None = Field(None, ge=0)
    """Rounds after UCE; by default the kind's preset's, and of several kinds the most."""
    embedding: Literal["zero", "surrogate", "target"] = "zero"
    """What the adversarial embeddings are held to: small, the erased rows, or other words."""
    regular_scale: float | None = Field(None, gt=0)
    """r: weight of holding them there; by default the kind's preset's, and of several the least."""
    regularization: Literal["outputs", "embedding", "both"] | None = None
    """With ``surrogate``: hold to the rows' outputs, to the rows, or both; original: outputs."""
    targets: tuple[str | None, ...] = ()
    """With ``target``: for each concept, in order, the words to hold its embeddings to."""
    technique: Technique = "replace"
    """``tensor`` takes the adversarial outputs' own direction out of the epochs' targets."""
    templates: bool = False
    """Erase the words in sentences of their kind too; original: in UCE alone."""
    contexts: tuple[Context, ...] = ()
    """Sentences with ``{}`` for the words, in place of the templates; only when corrected."""
    preserve: tuple[str, ...] | None = None
    """Exactly these prompts to keep in the epochs; by default the policy's and the empty prompt."""
    erase_scale: float = Field(1.0, gt=0)
    """a: weight of the adversarial rows in the epochs."""
    preserve_scale: float | None = Field(None, ge=0)
    """p: weight of the rows to keep in the epochs; by default that of UCE, original: 0.1."""
    lamb: float = Field(0.1, gt=0)
    """lam: weight of staying near the weights that an epoch begins with."""
    uce_technique: Technique = "replace"
    """``technique`` of UCE."""
    uce_preserve: tuple[str, ...] | None = None
    """``preserve`` of UCE."""
    uce_erase_scale: float = Field(1.0, gt=0)
    """``erase_scale`` of UCE."""
    uce_preserve_scale: float | None = Field(None, ge=0)
    """``preserve_scale`` of UCE."""
    uce_lamb: float = Field(0.5, gt=0)
    """``lamb`` of UCE."""

    @model_validator(mode="after")
    def _consistent(self) -> "RECE":
        if self.regularization and self.embedding != "surrogate":
            raise ValueError('regularization: only with embedding="surrogate"')
        if self.targets and self.embedding != "target":
            raise ValueError('targets: only with embedding="target"')
        return self

    def solve(self, model: Model, policy: Policy, seed: int) -> Change:
        """The change after the last epoch: one matrix for all projections, or one each."""
        stage = self.uce.solve(model, policy, seed)
        rounds = deque(self.rounds(model, policy, stage), maxlen=1)
        return rounds[0].projections.payload() if rounds else stage

    def solve_epochs(self, model: Model, policy: Policy, seed: int) -> Iterator[Change]:
        """The changes after UCE and after each epoch, each from the base; see ``best_epoch``."""
        stage = self.uce.solve(model, policy, seed)
        yield stage
        for done in self.rounds(model, policy, stage):
            yield done.projections.payload()

    @property
    def uce(self) -> UCE:
        """Stage 0."""
        return UCE(
            fidelity=self.fidelity,
            technique=self.uce_technique,
            templates=self.templates,
            contexts=self.contexts,
            preserve=self.uce_preserve,
            erase_scale=self.uce_erase_scale,
            preserve_scale=self.uce_preserve_scale,
            lamb=self.uce_lamb,
        )

    def rounds(self, model: Model, policy: Policy, stage: Change) -> Iterator["Epoch"]:
        """Adversarial embeddings and edited projections of each epoch after the change ``stage``.

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
        kept = edit.preserved(model, policy)
        if self.fidelity == "corrected":  # what is moved already must not come back
            kept = kept_rows((kept, *(c.rows for c in concepts)), 1.0, model.text_width)
        projections = self._projections(model, stage)
        for _ in range(epochs):
            sums = projections.sums
            found = tuple(self._adversarial(sums, concept, scale) for concept in concepts)
            moved = [
                Rows(rows, anchor, torch.full_like(rows[:, 0], self.erase_scale))
                for concept, embeddings in zip(concepts, found, strict=True)
                for rows, anchor in concept.paired(embeddings)
            ]
            projections = projections.edited(moved, kept, self.lamb)
            yield Epoch(found, projections)

    def _strength(self, policy: Policy) -> Strength:
        """r and the number of epochs: of the settings, else of the presets of the kinds."""
        kinds = [BY_KIND[concept.kind] for concept in policy.erase]
        if kinds.count("unsafe") > 1:
            kinds = ["unsafe-list" if kind == "unsafe" else kind for kind in kinds]
        usual = [Strength(**preset(RECE, kind).values(self.fidelity)) for kind in kinds]
        return Strength(
            self.regular_scale or min(strength.regular_scale for strength in usual),
            max(strength.epochs for strength in usual) if self.epochs is None else self.epochs,
        )

    def _targets(self, policy: Policy) -> Sequence[str | None]:
        """The words to hold each concept's embeddings to, ``None`` where there are none.

        Raises:
            ExpungeError: there must be some, or there are more or fewer than concepts.
        """
        count = len(policy.erase)
        targets = self.targets or (None,) * count
        if len(targets) != count:
            raise ExpungeError(f"targets: {len(targets)} given for {count} concepts; give one each")
        if self.embedding == "target" and self.fidelity == "corrected" and None in targets:
            lacking = policy.erase[targets.index(None)].target
            raise ExpungeError(
                f'targets: none for {lacking!r}; name one per concept, or use embedding="zero"'
            )
        return targets

    def _edit(self, policy: Policy) -> UCE:
        """The edit of an epoch: which prompts it erases, what it keeps, at which weights."""
        original, preserve, scale = self.fidelity == "original", self.preserve, self.preserve_scale
        if original and preserve is None and all(c.kind == "unsafe" for c in policy.erase):
            preserve = (*(" " for _ in policy.erase), *policy.kept)
        return UCE(
            fidelity=self.fidelity,
            templates=self.templates and not original,
            contexts=self.contexts,
            preserve=preserve,
            erase_scale=self.erase_scale,
            preserve_scale=0.1 if original and scale is None else scale,
            lamb=self.lamb,
        )

    def _erased(self, model: Model, edit: UCE, concept: Concept, target: str | None) -> "Erased":
        """Rows of a concept's prompts beside those of their anchors and of its target."""
        others = [concept]
        if target is not None:
            others.append(concept.model_copy(update={"anchor": target}))
        pairs = zip(*(edit.pairs_of(other) for other in others), strict=True)
        prompts = ([same[0].erase, *(pair.anchor for pair in same)] for same in pairs)
        rows, anchors, *targets = zip(*(self._rows(model, own) for own in prompts), strict=True)
        held = torch.cat(targets[0]) if targets else None
        return Erased(concept.target, torch.cat(rows), anchors, held)

    def _rows(self, model: Model, prompts: Sequence[str]) -> Iterator[Tensor]:
        """Rows ``[rows, width]`` of a prompt, its anchor and its target, paired by position.

        When corrected, they begin where the prompt and its anchor differ: what stands before it,
        the start row at least, knows nothing of the concept and stays.
        """
        words = zip(*(model.tokens(prompt) for prompt in prompts[:2]), strict=False)
        common = 1 + sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], words))
        first = 0 if self.fidelity == "original" else common
        return (rows[first:] for rows in model.encode(prompts))

    def _adversarial(self, sums: "Sums", concept: "Erased", scale: float) -> Tensor:
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
        """What holds the adversarial embeddings of ``rows`` ``[rows, width]``.

        The released program knows no target without words, and holds to outputs and rows then.
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

    def _projections(self, model: Model, stage: Change) -> "Shared | Separate":
        """The projections after stage 0."""
        weights = {name: model.base_weight(name) for name in stage.names}
        if isinstance(stage, Ridge) and self.technique == "replace":
            total = gram(*weights.values())
            return Shared(stage.names, total, stage.factors)
        unchanged = {name: torch.zeros_like(w, dtype=torch.float64) for name, w in weights.items()}
        return Separate(self.technique, weights, unchanged).then(stage)


class Erased(NamedTuple):
    """Rows of one concept's prompts, one under the other, and the rows that belong to them."""

    words: str
    rows: Tensor
    """``[rows, width]``"""
    anchors: Sequence[Tensor]
    """For each prompt ``[rows of the prompt, width]``."""
    target: Tensor | None
    """``[rows, width]``"""

    def paired(self, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """For each prompt its part of ``rows`` ``[rows, width]``, and its anchor's rows."""
        parts = torch.split(rows, [len(anchor) for anchor in self.anchors])
        return zip(parts, self.anchors, strict=True)


class Sums(NamedTuple):
    """All that the adversarial embeddings need of the projections, ``[width, width]`` each."""

    inner: Tensor
    """``H = sum W^T W``"""
    outer: Tensor
    """``S = sum W^T W0``"""


class Penalty(NamedTuple):
    """``near |C' - T|^2 + outputs sum |W C'^T - W E^T|^2`` holds adversarial embeddings back."""

    target: Tensor
    """T, ``[rows, width]``"""
    near: float
    outputs: float = 0.0


def adversarial(sums: Sums, rows: Tensor, penalty: Penalty) -> Tensor:
    """The rows C' whose edited outputs come nearest to the base outputs of ``rows``.

    The minimiser of ``sum |W C'^T - W0 E^T|^2`` plus the penalty, float64 ``[rows, width]``.

    Raises:
        ExpungeError: the system is singular to working precision.
    """
    target, near, outputs = penalty
    identity = torch.eye(len(sums.inner), dtype=torch.float64, device=rows.device)
    wanted = rows @ sums.outer.T + outputs * rows @ sums.inner + near * target
    return solve((1 + outputs) * sums.inner + near * identity, wanted)


@dataclass(frozen=True, eq=False)
class Shared:
    """Projections ``W = W0 M`` that never need to be formed."""

    names: tuple[str, ...]
    gram: Tensor
    """``G = sum W0^T W0``, ``[width, width]`` float64."""
    matrix: SharedFactors
    """``M``"""

    @property
    def sums(self) -> Sums:
        left, right = self.matrix
        outer = self.gram + right.T @ (left @ self.gram)
        return Sums(outer + outer @ left.T @ right, outer)

    def edited(self, moved: Sequence[Rows], kept: Tensor, lamb: float) -> "Shared":
        """After an edit that moves these rows, one ``Rows`` per prompt."""
        return replace(self, matrix=self.matrix @ shared_factors(joined(moved), kept, lamb))

    def payload(self) -> SharedMatrix:
        return SharedMatrix(self.names, *self.matrix.compressed())


@dataclass(frozen=True, eq=False)
class Separate:
    """Projections that share no matrix, because ``tensor`` made one of their edits."""

    technique: Technique
    base: Mapping[str, Tensor]
    changes: Mapping[str, Tensor]
    """``W - W0``, float64."""

    @property
    def weights(self) -> dict[str, Tensor]:
        return {name: self.base[name].double() + change for name, change in self.changes.items()}

    @property
    def sums(self) -> Sums:
        pairs = [(weight, self.base[name].double()) for name, weight in self.weights.items()]
        return Sums(
            gram(*(weight for weight, _ in pairs)),
            reduce(torch.add, (weight.T @ base for weight, base in pairs)),
        )

    def edited(self, moved: Sequence[Rows], kept: Tensor, lamb: float) -> "Separate":
        """After an edit that moves these rows, one ``Rows`` per prompt."""
        if self.technique == "tensor":
            return self.then(tensor_edit(self.weights, moved, kept, lamb))
        return self.then(Ridge(tuple(self.base), joined(moved), kept, lamb))

    def then(self, step: Change) -> "Separate":
        """After a change of the projections as they are now."""
        changes = {
            name: self.changes[name] + step.change(name, weight)
            for name, weight in self.weights.items()
        }
        return replace(self, changes=changes)

    def payload(self) -> LowRank | Dense:
        """The changes in factors with one right side for all, or whole where that is smaller."""
        stacked = torch.linalg.qr(torch.cat(list(self.changes.values())), mode="r").R
        _, values, basis = torch.linalg.svd(stacked)
        down = basis[: max(1, int((values > NEGLIGIBLE * values[0]).sum()))].contiguous()
        up = {name: change @ down.T for name, change in self.changes.items()}
        thin = LowRank(up, {name: down.clone() for name in up})
        whole = sum(change.numel() for change in self.changes.values())
        smaller = sum(tensor.numel() for tensor in thin.tensors().values()) < whole
        return thin if smaller else Dense(self.changes)


class Epoch(NamedTuple):
    """An epoch: the embeddings that it found, and the projections after its edit."""

    adversarial: tuple[Tensor, ...]
    """For each concept ``[rows, width]`` float64."""
    projections: Shared | Separate


class Best(NamedTuple):
    """An epoch that was chosen by its score."""

    epoch: int
    """Rounds after UCE, to be given as ``epochs``; 0 is UCE alone."""
    payload: Change
    score: float


def best_epoch(
    payloads: Iterable[Change], score: Callable[[Change], float], base: float = math.inf
) -> Best:
    """The payload of ``solve_epochs`` that scores strictly below the base and all before it.

    Args:
        payloads: after UCE and after each epoch.
        score: what is left of the concept, e.g. a rate over pictures; lower is better.
        base: the score of the model without any edit.

    Raises:
        ExpungeError: no payload scores below the base, or a score is NaN.
    """
    best: Best | None = None
    lowest = base
    for epoch, payload in enumerate(payloads):
        value = score(payload)
        if math.isnan(value):
            raise ExpungeError(f"the score of epoch {epoch} is NaN; nothing can be chosen by it")
        if value < lowest:
            best, lowest = Best(epoch, payload, value), value
    if best is None:
        raise ExpungeError(f"no epoch scores below {base:g}, the model without an edit")
    return best
