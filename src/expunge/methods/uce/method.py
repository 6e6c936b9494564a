"""UCE: Unified Concept Editing (Gandikota et al., WACV 2024).

Each key and value projection ``W`` of the cross-attention becomes the closed-form minimiser of::

    a |W' C^T - V^T|^2 + p |W' P^T - W P^T|^2 + lam |W' - W|^2

The rows ``C`` of the erased words get the outputs ``V`` of the anchor's rows ``T``, and the rows
``P`` of everything to keep stay. There are two released algorithms. In 2023, an erased prompt gives
the rows from its last word piece through the padding, and a kept prompt gives all its rows. In
2025, each prompt gives only the row of its last word piece.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial, reduce
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from expunge.algebra.ridge import Moved, Rows, joined, shared_factors
from expunge.concepts import Concept, Context, Pair, Policy
from expunge.edits.payloads import Change, LowRank
from expunge.edits.ridge import Ridge, Stays
from expunge.method.base import Need, PolicyPart
from expunge.methods.kept import PROMPTS, KeepsPrior, weighed_rows
from expunge.models import Model
from expunge.sentences import PLACE, fill

ROWS = 4096
"""Prompts encoded at a time where each gives one row: those of one length side by side."""
RELEASED_TEMPLATES = {
    "object": ("image of {}", "photo of {}", "portrait of {}", "picture of {}", "painting of {}"),
    "style": ("painting by {}", "art by {}", "artwork by {}", "picture by {}", "style of {}"),
}


class UCE(KeepsPrior):
    """Closed-form edit of the cross-attention keys and values."""

    name: ClassVar[str] = "uce"
    title: ClassVar[str] = "Unified Concept Editing"
    year: ClassVar[int] = 2024
    url: ClassVar[str] = "https://arxiv.org/abs/2308.14761"
    needs: ClassVar[frozenset[Need]] = frozenset({"text"})
    corrected_only: ClassVar[tuple[str, ...]] = ("contexts", "prior_scale")

    variant: Literal["2023", "2025"] = "2023"
    """The released algorithm. 2023 edits the rows from the last word piece through the padding;
    2025 edits only the row of the last word piece."""
    technique: Literal["replace", "tensor"] = "replace"
    """``tensor`` (only 2023) first removes the erased outputs' own direction from the targets."""
    templates: bool = False
    """Erase the words in template sentences of their kind too. The edit is larger and generalises
    better."""
    contexts: tuple[Context, ...] = ()
    """Sentences with ``{}`` for the words, instead of the templates."""
    preserve: tuple[str, ...] | None = None
    """Keep exactly these prompts. Default: the policy's, and in 2023 also the empty prompt."""
    erase_scale: float = Field(1.0, gt=0)
    """a: weight of the rows to move."""
    preserve_scale: float | None = Field(None, ge=0)
    """p: weight of the rows to keep. Default: everything kept together weighs as much as one erased
    phrase. Original: 1 in 2025, max(0.1, 1 / number of kept prompts) in 2023."""
    prior_scale: float = Field(0.05, ge=0)
    """Weight of the prior: with 1, all its prompts together weigh as much as one erased phrase."""
    lamb: float = Field(0.5, gt=0)
    """lam: weight of staying near the old weights."""

    @model_validator(mode="after")
    def _consistent(self) -> "UCE":
        if self.technique == "tensor" and self.variant == "2025":
            raise ValueError('technique: "tensor" is part of the 2023 variant only')
        return self

    @property
    def ignored(self) -> frozenset[PolicyPart]:
        """Prompts to keep, where ``preserve`` lists others."""
        return super().ignored | ({"keep"} if self.preserve is not None else set())

    def solve(self, model: Model, policy: Policy, seed: int) -> Change:
        """The ridge system of all projections; for ``tensor``, a low-rank change of each."""
        names = model.select("cross_attention.kv")
        pairs = self.pairs(policy)
        if self.technique == "tensor":
            each = [self._weighted([old], [new]) for old, new in self._pair_rows(model, pairs)]
            kept = self.stays(model, policy).rows
            return tensor_edit({n: model.base_weight(n) for n in names}, each, kept, self.lamb)
        moved, stays = self._moved(model, pairs), self.stays(model, policy)
        return Ridge(names, moved, stays.kept, self.lamb, stays.left_out)

    def erased_prompts(self, policy: Policy) -> Iterator[str]:
        return (pair.erase for pair in self.pairs(policy))

    def kept_prompts(self, policy: Policy) -> tuple[str, ...]:
        return self.kept(policy)

    def _moved(self, model: Model, pairs: Sequence[Pair]) -> Moved:
        """Rows of all pairs, encoded a few prompts at a time."""
        blocks = (pairs[at : at + PROMPTS] for at in range(0, len(pairs), PROMPTS))
        rows: Iterator[Moved] = (
            self._weighted(*zip(*self._pair_rows(model, block), strict=True)) for block in blocks
        )
        return reduce(lambda moved, more: joined([moved, more]), rows)

    def _weighted(self, sources: Sequence[Tensor], targets: Sequence[Tensor]) -> Rows:
        rows = torch.cat(list(sources))
        weights = torch.full((len(rows),), self.erase_scale, dtype=torch.float64)
        return Rows(rows, torch.cat(list(targets)), weights.to(rows.device))

    def pairs(self, policy: Policy) -> tuple[Pair, ...]:
        """Every prompt to erase with its anchor prompt."""
        return tuple(pair for concept in policy.erase for pair in self.pairs_of(concept))

    def pairs_of(self, concept: Concept) -> Iterator[Pair]:
        """Every prompt of a concept to erase, with its anchor prompt."""
        if self.fidelity == "original":
            return self._released(concept)
        return concept.pairs(self._sentences)

    @property
    def _sentences(self) -> tuple[str, ...]:
        """What ``Concept.pairs`` takes: own sentences, none for the templates, or bare words."""
        return self.contexts or (() if self.templates else (PLACE,))

    def _released(self, concept: Concept) -> Iterator[Pair]:
        """Pairs of the target, without synonyms; only 2025 puts the anchor into the templates."""
        kind = "style" if concept.kind == "style" else "object"
        for sentence in (PLACE, *(RELEASED_TEMPLATES[kind] if self.templates else ())):
            erase = fill(sentence, concept.target)
            anchor = fill(sentence if self.variant == "2025" else PLACE, concept.replacement)
            yield Pair(erase, anchor, erase, anchor)

    def _pair_rows(self, model: Model, pairs: Sequence[Pair]) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows of each erased prompt and of its anchor, paired by position ``[rows, width]``."""
        erased, anchors = [pair.erase for pair in pairs], [pair.anchor for pair in pairs]
        whole = self.variant == "2023" and self.fidelity == "corrected"
        row = model.last_name if whole else model.last_token
        firsts = [row(pair.erase_head) for pair in pairs]
        seconds = [row(pair.anchor_head) for pair in pairs]
        if self.variant == "2025":
            old, new = model.encode_rows(erased, firsts), model.encode_rows(anchors, seconds)
            yield from zip(old[:, None], new[:, None], strict=True)
            return
        rows = model.encode([*erased, *anchors])
        old, new = rows[: len(pairs)], rows[len(pairs) :]
        for first, second, before, after in zip(firsts, seconds, old, new, strict=True):
            length = len(before) - max(first, second)
            yield before[first : first + length], after[second : second + length]

    def stays(self, model: Model, policy: Policy) -> Stays:
        """Rows of all prompts to keep, times the root of p, and the prior."""
        prompts, rows = self.kept(policy), partial(self._kept_rows, model)
        scale = self._scale(policy, len(prompts))
        many = PROMPTS if self.variant == "2023" else ROWS
        named = weighed_rows(rows, prompts, scale, model.text_width, many).to(model.device)
        return self.staying(model, policy, named, self.prior_scale)

    def _kept_rows(self, model: Model, prompts: Sequence[str]) -> Tensor:
        if self.variant == "2023":
            return model.encode(prompts)
        return model.encode_rows(prompts, [model.last_token(prompt) for prompt in prompts])

    def kept(self, policy: Policy) -> tuple[str, ...]:
        """Every prompt to keep; when corrected, the policy's words also in the sentences."""
        if self.preserve is not None:
            return self.preserve
        corrected = self.fidelity == "corrected"
        prompts = policy.kept_prompts(self._sentences) if corrected else policy.kept
        empty = ("",) if self.variant == "2023" else ()
        return tuple(dict.fromkeys((*empty, *prompts)))

    def _scale(self, policy: Policy, kept: int) -> float:
        if self.preserve_scale is not None:
            return self.preserve_scale
        if self.fidelity == "corrected":
            return 1 / max(1, kept if self.preserve is not None else len(policy.kept))
        return 1.0 if self.variant == "2025" else max(0.1, 1 / max(1, kept))


def tensor_edit(
    weights: Mapping[str, Tensor], moved: Sequence[Rows], kept: Tensor, lamb: float
) -> LowRank:
    """The edit with ``V = T W^T - <u, T W^T> u``, where ``u`` is the erased outputs at norm 1.

    Each of ``moved`` is one prompt, whose outputs share one norm; ``kept`` is ``[kept, width]``.
    """
    columns = zip(*((part.sources, part.targets, part.weights) for part in moved), strict=True)
    rows = Rows(*(torch.cat(column) for column in columns))
    right = shared_factors(rows, kept, lamb).right
    up = {
        name: torch.cat([_tensor_change(weight, part) for part in moved], 1)
        for name, weight in weights.items()
    }
    return LowRank(up, {name: right.clone() for name in up})


def _tensor_change(weight: Tensor, moved: Rows) -> Tensor:
    """``(V - C W^T)^T`` of one prompt, times the roots of its weights, ``[out, rows]``."""
    old, new = (rows.double() @ weight.double().T for rows in (moved.sources, moved.targets))
    projection = (old * new).sum() / (old * old).sum()
    return moved.weights.sqrt() * (new - projection * old - old).T
