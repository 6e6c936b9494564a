"""Prompts as token ids: rows that may be optimised, and the way to text and back."""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from expunge.errors import Unsupported
from expunge.models import Condition, Model
from expunge.models.text import TextInput
from expunge.prompts.lexicon import refused


class Tokens:
    """Token ids of a model with one text encoder, without start and end.

    Raises:
        Unsupported: the model has several text encoders.
    """

    def __init__(self, model: Model) -> None:
        if len(model.text_encoders) > 1:
            raise Unsupported(
                f"{model.name!r} has {len(model.text_encoders)} text encoders; attacks that choose "
                "tokens aren't there yet for it"
            )
        self.model = model
        [self.encoder] = model.text_encoders

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

    def row(self, ids: Sequence[int]) -> Tensor:
        """Start, these ids, end and padding, ``[window]``."""
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

    def allowed(self, ids: Sequence[int]) -> bool:
        """Whether the text may be drawn: never one with a sexual and a minor-related word."""
        return not refused({"prompt": self.text(ids)})
