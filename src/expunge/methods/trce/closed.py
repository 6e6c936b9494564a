"""TRCE: Towards Reliable Malicious Concept Erasure (Chen et al., ICCV 2025), stage 1.

The end-of-text row, right after a prompt's words, carries what the prompt says. Each key and value
projection ``W`` of the cross-attention becomes the closed-form minimiser of::

    sum_i sum_r w_r b_ir |W' c_ir - W s_ir|^2  +  eta sum_j |W' e_j - W e_j|^2  +  lam |W' - W|^2

Each pair ``i`` is a prompt with the erased words and the same prompt with safe words: the row
``c_ir`` of the first gets the outputs of the row ``s_ir`` of the second. Rows belong to four
classes ``r`` with weights ``w``: the start, the end of the text, the last row of the padding, which
stands for all its ``b_ir`` rows, and the erased words themselves, which get the outputs of the last
row. The rows ``e_j`` of ordinary captions stay.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, NonNegativeFloat, model_validator

from expunge.algebra.ridge import Moved, Rows, joined
from expunge.concepts import Concept, Context, Policy
from expunge.edits.payloads import Change
from expunge.edits.ridge import Ridge, Stays
from expunge.errors import ExpungeError
from expunge.method.base import Need, PolicyPart
from expunge.methods.kept import PROMPTS, KeepsPrior, kept_with_empty, weighed_rows
from expunge.models import Model
from expunge.prior import Prior
from expunge.sentences import beginning, fill

CLASSES = ("start", "end", "last", "words")
"""The classes of rows, in the order of their weights."""
RELEASED: Mapping[str, Any] = {
    "index": "word",
    "preserve_scale": 0.01,
    "lamb": 0.0,
}
"""The released program's defaults where they differ from the corrected ones."""
RELEASED_CAPTIONS = 30_000
"""The number of captions that the released program assumes for every cache."""


class SafePair(NamedTuple):
    """A prompt that names what is erased, and the same prompt with the safe words."""

    erase: str
    safe: str
    before: str
    """``erase`` up to the words."""
    words: str


class Match(NamedTuple):
    """A row of the erased prompt that gets the outputs of a row of the safe one."""

    source: int
    target: int
    weight: float


class TRCE(KeepsPrior):
    """Closed-form edit that gives end-of-text rows of erased prompts the outputs of safe ones."""

    name: ClassVar[str] = "trce"
    title: ClassVar[str] = "TRCE: Towards Reliable Malicious Concept Erasure"
    year: ClassVar[int] = 2025
    url: ClassVar[str] = "https://arxiv.org/abs/2503.07389"
    needs: ClassVar[frozenset[Need]] = frozenset({"text"})
    released: ClassVar[Mapping[str, Any]] = RELEASED
    released_prior: ClassVar[bool] = True
    released_ignored: ClassVar[frozenset[PolicyPart]] = frozenset({"keep"})
    original_only: ClassVar[tuple[str, ...]] = ("index",)
    corrected_only: ClassVar[tuple[str, ...]] = ("prior_scale",)
    released_synonyms: ClassVar[bool] = True

    contexts: tuple[Context, ...] = ()
    """Sentences with ``{}`` for the words. Default: the words alone and the templates."""
    token_weight_scale: tuple[NonNegativeFloat, ...] = Field(
        (0.0, 1.0, 0.0, 0.0), min_length=1, max_length=4
    )
    """w: weights of four rows: start, end of text, last padding row, erased words."""
    preserve_scale: float = Field(0.03, ge=0)
    """eta: weight of the mean of the prompts to keep. Original: its square divided by 30000 weighs
    the captions' sum; default 0.01."""
    prior_scale: float = Field(0.003, ge=0)
    """Weight of the prior's mean."""
    lamb: float = Field(1.0, ge=0)
    """lam: weight of staying near the old weights; original: 0."""
    index: Literal["word", "bpe"] = "bpe"
    """How rows are found: by counting word pieces (``bpe``), or words, as the released program
    does."""

    @model_validator(mode="after")
    def _consistent(self) -> "TRCE":
        if not any(self.token_weight_scale):
            raise ValueError("token_weight_scale: all weights are 0, so nothing would be erased")
        if self.fidelity == "corrected" and len(self.token_weight_scale) < len(CLASSES):
            raise ValueError(f"token_weight_scale: give four weights ({', '.join(CLASSES)})")
        return self

    def solve(self, model: Model, policy: Policy, seed: int) -> Change:
        """The ridge system of all projections.

        Raises:
            ExpungeError: it has no solution, or a prompt or the prior doesn't suit the model.
        """
        names, stays = model.select("cross_attention.kv"), self._stays(model, policy)
        moved = self._moved(model, policy)
        system = Ridge(names, moved, stays.kept, self.lamb, stays.left_out)
        _ = system.factors  # without lam there may be no solution; report that now, not on apply
        return system

    # --- what moves

    def pairs(self, concept: Concept) -> Iterator[SafePair]:
        """Each phrase of a concept in each sentence, with the same sentence in safe words."""
        for phrase in concept.given if self.fidelity == "original" else concept.phrases:
            for sentence in concept.sentences(self.contexts):
                erase, safe = fill(sentence, phrase), fill(sentence, concept.replacement)
                yield SafePair(erase, safe, beginning(sentence), phrase)

    def matches(self, model: Model, pair: SafePair) -> tuple[Match, ...]:
        """The rows of a pair that move, their targets and their weights ``w b``, none of them 0.

        Raises:
            ExpungeError: the prompt is too long to have such a row.
        """
        w = (*self.token_weight_scale, *self.token_weight_scale[-1:] * len(CLASSES))
        last = model.window - 1
        count = self._length(model, pair.erase)
        rows = (
            Match(0, 0, w[0]),
            Match(count + 1, self._length(model, pair.safe) + 1, w[1]),
            Match(last, last, w[2] * (last - 1 - count)),
            *(Match(row, last, w[3]) for row in (self._words(model, pair) if w[3] else ())),
        )
        moved = tuple(row for row in rows if row.weight > 0)
        if not moved or max(max(row.source, row.target) for row in moved) > last:
            raise ExpungeError(
                f"{pair.erase!r}: a row with a weight in token_weight_scale isn't among the "
                f"{last + 1} rows; the prompt is too long for its words or its padding to be there"
            )
        return moved

    def _length(self, model: Model, prompt: str) -> int:
        return len(prompt.split()) if self.index == "word" else model.last_token(prompt)

    def _words(self, model: Model, pair: SafePair) -> Sequence[int]:
        """Rows of the erased words; original: the first one only."""
        if self.index == "word":
            return _first_word(pair)
        start, end = (
            model.last_token(text) + 1 for text in (pair.before, pair.before + pair.words)
        )
        return range(start, end)[: 1 if self.fidelity == "original" else None]

    def _moved(self, model: Model, policy: Policy) -> Moved:
        """Rows of all pairs, encoded a few prompts at a time.

        Each concept has a total weight of 1, so that two edits add up to the edit of both. In the
        original, all concepts together have a weight of 1.
        """
        groups = [list(self.pairs(concept)) for concept in policy.erase]
        if self.fidelity == "original":
            groups = [[pair for pairs in groups for pair in pairs]]
        blocks = (
            self._rows(model, pairs[at : at + PROMPTS], 1 / len(pairs))
            for pairs in groups
            for at in range(0, len(pairs), PROMPTS)
        )
        return reduce(lambda moved, more: joined([moved, more]), blocks)

    def _rows(self, model: Model, pairs: Sequence[SafePair], share: float) -> Moved:
        """The rows of some pairs, their weights multiplied by ``share``."""
        erased = model.encode([pair.erase for pair in pairs])
        safe = model.encode([pair.safe for pair in pairs])
        rows = [(i, row) for i, pair in enumerate(pairs) for row in self.matches(model, pair)]
        weights = torch.tensor([share * row.weight for _, row in rows], dtype=torch.float64)
        return Rows(
            torch.stack([erased[i, row.source] for i, row in rows]),
            torch.stack([safe[i, row.target] for i, row in rows]),
            weights.to(erased.device),
        )

    # --- what stays

    def kept(self, policy: Policy) -> tuple[str, ...]:
        """Prompts that stay: the empty one, and the policy's, bare and in the sentences.

        The original keeps no prompts, only the prior.
        """
        if self.fidelity == "original":
            return ()
        return kept_with_empty(policy, self.contexts)

    def _stays(self, model: Model, policy: Policy) -> Stays:
        """Rows of all that stays, times the root of their weight."""
        prompts = self.kept(policy)
        weight = self.preserve_scale / max(1, len(prompts))
        rows = weighed_rows(model.encode, prompts, weight, model.text_width).to(model.device)
        scale = self.prior_scale
        if self.fidelity == "original" and isinstance(self.prior, Prior):
            scale = self.preserve_scale**2 * self.prior.metadata.count / RELEASED_CAPTIONS
        return self.staying(model, policy, rows, scale)


def _first_word(pair: SafePair) -> tuple[int]:
    """Row of the first erased word, on the assumption that every word is one token.

    Raises:
        ExpungeError: the prompt doesn't contain the words as separate words.
    """
    prompt, words = pair.erase.split(), pair.words.split()
    for start in range(len(prompt)):
        if prompt[start : start + len(words)] == words:
            return (start + 1,)
    raise ExpungeError(
        f"{pair.erase!r}: {pair.words!r} can't be found when words are counted; put spaces around "
        'the {} or use index="bpe"'
    )
