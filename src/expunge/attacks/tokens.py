"""Prompts as token ids: rows that may be optimised, and the way to text and back."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from expunge.attacks.target import Target
from expunge.errors import ExpungeError, Unsupported
from expunge.models import Condition, Model
from expunge.models.text import TextInput
from expunge.prompts.lexicon import refused


class Tokens:
    """Token ids of a model with one text encoder, without start and end.

    Args:
        model: has one text encoder.
        aim: what the attack is after; together with it, no text may be one that is refused.

    Raises:
        Unsupported: the model has several text encoders.
    """

    def __init__(self, model: Model, aim: str = "") -> None:
        if len(model.text_encoders) > 1:
            raise Unsupported(
                f"{model.name!r} has {len(model.text_encoders)} text encoders; attacks that choose "
                "tokens aren't there yet for it"
            )
        self.model = model
        self.aim = aim
        [self.encoder] = model.text_encoders

    @classmethod
    def of(cls, target: Target) -> Self:
        """Those of a target's model, after its concept."""
        return cls(target.model, " ".join(target.concept.phrases))

    @cached_property
    def empty(self) -> Tensor:
        """Start, end and padding: the row of the empty prompt, ``[window]``."""
        [text] = self.model.read([""])
        return text.ids[0]

    @property
    def room(self) -> int:
        """How many tokens a prompt has at most."""
        return len(self.empty) - 2

    @cached_property
    def table(self) -> Tensor:
        """Token embeddings, ``[vocabulary, width]`` float32."""
        return self.encoder.table.detach().float()

    @cached_property
    def vocabulary(self) -> Tensor:
        """The ids that may stand in a prompt: all but the special ones, ``[ids]``."""
        special = set(self.encoder.tokenizer.all_special_ids)
        return torch.tensor([one for one in range(len(self.table)) if one not in special])

    @property
    def readable(self) -> Tensor:
        """The ids of whole words, which are read as themselves wherever they stand, ``[ids]``.

        Others are pieces of words: written out and read again, they run into their neighbours.
        They are found once for a model, which takes seconds for a large vocabulary.
        """
        known = self.model.attached.setdefault(Tokens, {})
        size = len(self.table)
        if size not in known:
            known[size] = self._readable()
        found: Tensor = known[size]
        return found

    def _readable(self) -> Tensor:
        ids = self.vocabulary.tolist()
        texts = [
            str(one).strip() for one in self.encoder.tokenizer.batch_decode([[i] for i in ids])
        ]
        read = self.model.tokenized(texts)
        return torch.tensor([one for one, own in zip(ids, read, strict=True) if own == [one]])

    def without(self, ids: Tensor, phrases: Iterable[str]) -> Tensor:
        """Those of the ids that no phrase is made of, ``[ids]``.

        Raises:
            ExpungeError: none is left.
        """
        own = [one for phrase in phrases for one in self.ids(phrase)]
        left = ids[~torch.isin(ids, torch.tensor(own, dtype=ids.dtype))]
        if not len(left):
            raise ExpungeError(
                f"{self.model.name!r} knows no other words than those of the concept"
            )
        return left

    def row(self, ids: Sequence[int]) -> Tensor:
        """Start, these ids, end and padding, ``[window]``.

        Raises:
            ExpungeError: they are more than the text encoder reads.
        """
        if len(ids) > self.room:
            raise ExpungeError(
                f"a prompt of {len(ids)} tokens: {self.model.name!r} reads {self.room}; attack "
                "with fewer tokens, or with a shorter prompt"
            )
        found = self.empty.clone()
        found[1 : len(ids) + 1] = torch.tensor(list(ids))
        found[len(ids) + 1] = self.encoder.end
        return found

    def input(self, prompts: Sequence[Sequence[int]]) -> TextInput:
        """Prompts as the text encoder reads them."""
        return TextInput(torch.stack([self.row(ids) for ids in prompts]))

    def condition(self, prompts: Sequence[Sequence[int]]) -> Condition:
        """Their conditions, without gradients."""
        with torch.no_grad():
            return self.model.embed(self.input(prompts))

    def embedded(self, ids: Sequence[int], at: Sequence[int], rows: Tensor) -> Condition:
        """The condition of a prompt with embeddings ``[pieces, width]`` in some places of it.

        Args:
            ids: the prompt; what stands in those places doesn't matter.
            at: the places, from 0 on.
            rows: gradients reach them.
        """
        places = torch.tensor([[place + 1 for place in at]])
        return self.model.embed(self.input([ids]).replaced(rows, places))

    def ids(self, text: str) -> list[int]:
        """Token ids of a text."""
        return self.model.tokens(text)

    def text(self, ids: Sequence[int]) -> str:
        """The text of ids. It may be read as others."""
        found: str = self.encoder.tokenizer.decode(list(ids))
        return found.strip()

    def reread(self, ids: Sequence[int]) -> list[int]:
        """The ids that their text is read as, which is what a user can send."""
        return self.ids(self.text(ids))

    def sendable(self, ids: Sequence[int]) -> tuple[int, ...]:
        """The ids that their text is read as; none if it may not be drawn."""
        found = tuple(self.reread(ids))
        return found if self.allowed(found) else ()

    def allowed(self, ids: Sequence[int]) -> bool:
        """Whether the text may be drawn: never one with a sexual and a minor-related word.

        What is attacked counts as part of the text.
        """
        return not refused({"prompt": self.text(ids), "aim": self.aim})
