"""What an edit does to everyday words, told without a picture.

Cross-attention answers a word with its keys and values. An edit that crowds those of ordinary words
together, or changes which words lie near each other, costs more than what it erases: both predict
how much worse pictures become, where distances between sets of pictures don't (Zhu et al., "SAGE",
ECCV 2026). And which words move most can be said word by word.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from expunge.edits.applied import edited_weights
from expunge.edits.edit import Edit
from expunge.errors import ExpungeError, Unsupported
from expunge.models import Model
from expunge.prompts.everyday import nouns, unnamed

WORDS = 300
"""Everyday nouns that are looked at."""
NEIGHBOURS = 10
SHOWN = 12
"""Words that are named."""


class MovedWord(BaseModel):
    """A word, and how far its keys and values move."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    word: str
    share: float
    """Length of the change, as a share of their length."""


class Damage(BaseModel):
    """What an edit does to keys and values of everyday words."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    words: int
    """How many were looked at; none names what is erased."""
    spread: float
    """Their mean squared distance from their mean, after over before. Below 1 they crowd."""
    overlap: float
    """Mean share of words that are among a word's ten nearest both before and after, of those that
    are among them at all; 1 if no neighbourhood changes."""
    moved: tuple[MovedWord, ...]
    """Those that move most, farthest first."""


class _Answers(NamedTuple):
    """Products of all words' keys and values, summed over layers; float64."""

    before: Tensor
    """``[words, words]``."""
    after: Tensor
    moved: Tensor
    """Squared lengths of the changes, ``[words]``."""


def damage(model: Model, edit: Edit, words: Sequence[str] = ()) -> Damage:
    """Look at what an edit does to keys and values of words, at the last piece of each.

    Args:
        model: the base; it is unchanged.
        edit: for it.
        words: by default everyday nouns that don't name what is erased.

    Raises:
        Unsupported: the edit leaves keys and values of prompts alone, or acts by gates or guards.
        ExpungeError: fewer words than neighbours.
    """
    if edit.gated or edit.guarded:
        raise Unsupported("it depends on the prompt or the picture, so no word's change is its own")
    names = model.select("cross_attention.kv")
    if not {*names} & {*edit.changed}:
        raise Unsupported("it leaves keys and values of the prompts alone")
    listed = tuple(words) or _everyday(edit)
    if len(listed) <= NEIGHBOURS:
        raise ExpungeError(f"{len(listed)} words; give more than {NEIGHBOURS}")
    rows = model.encode_rows(listed, [len(ids) for ids in model.tokenized(listed)])
    found = _answers(model, edit, names, rows.double())
    own = found.before.diagonal()
    shares = (found.moved / own).sqrt()
    order = shares.argsort(descending=True, stable=True)[:SHOWN].tolist()
    return Damage(
        words=len(listed),
        spread=(_spread(found.after) / _spread(found.before)).item(),
        overlap=_overlap(found.before, found.after),
        moved=tuple(MovedWord(word=listed[at], share=shares[at].item()) for at in order),
    )


def _everyday(edit: Edit) -> tuple[str, ...]:
    return unnamed(nouns(), [words for one in edit.concepts for words in one.phrases])[:WORDS]


@torch.no_grad()
def _answers(model: Model, edit: Edit, names: Sequence[str], rows: Tensor) -> _Answers:
    """Those of rows ``[words, width]``."""
    count = len(rows)
    before, after = (rows.new_zeros(count, count) for _ in range(2))
    moved = rows.new_zeros(count)
    for name, edited in edited_weights(model, edit.components, names).items():
        base = model.base_weight(name).double()
        old, new = rows @ base.T, rows @ (base if edited is None else edited).T
        before += old @ old.T
        after += new @ new.T
        moved += (new - old).square().sum(1)
    return _Answers(before, after, moved)


def _spread(products: Tensor) -> Tensor:
    return products.diagonal().mean() - products.mean()


def _overlap(before: Tensor, after: Tensor) -> float:
    """Mean Jaccard index of each word's nearest ones."""
    old, new = _nearest(before), _nearest(after)
    return ((old & new).sum(1) / (old | new).sum(1)).mean().item()


def _nearest(products: Tensor) -> Tensor:
    """Which words are among the nearest of each, ``[words, words]`` bool."""
    own = products.diagonal()
    distances = own[:, None] + own - 2 * products
    distances.fill_diagonal_(torch.inf)
    nearest = distances.topk(NEIGHBOURS, largest=False).indices
    return torch.zeros_like(products, dtype=torch.bool).scatter_(1, nearest, True)
