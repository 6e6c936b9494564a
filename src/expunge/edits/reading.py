"""Reading prompts again: the tokens of rows that a text encoder gave."""

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from expunge.edits.gates import Tokens, row_digest
from expunge.models import Model
from expunge.models.calls import Listening
from expunge.models.text import TextInput


class Reader:
    """Finds the token ids of a prompt's rows, by remembering the text encoder's outputs.

    The ids of rows from elsewhere are unknown.
    """

    LIMIT = 4096
    """Prompts that are remembered."""
    READ = 256
    """Groups of texts whose rows are kept."""

    def __init__(self, model: Model) -> None:
        self.end = model.text_encoders[0].end
        self.dtype = model.dtype
        self.seen: dict[bytes, tuple[int, ...]] = {}
        prompts = list(model.remembered)
        for prompt, ids in zip(prompts, model.tokenized(prompts), strict=True):
            self._note(model.remembered[prompt].rows[0], ids)
        self.wholes: dict[tuple[tuple[int, ...], ...], Tensor] = {}
        self.encoder = _Encoder(model)
        self.listening: Listening | None = model.listen(self.note_all)

    def __call__(self, rows: Tensor) -> Tokens:
        """The ids of prompts ``[batch, tokens, width]``, without their starts and ends."""
        return [self.seen.get(row_digest(row)) for row in rows.detach()]

    def note_all(self, rows: Tensor, ids: Tensor) -> None:
        """Remember a batch of the encoder: rows ``[batch, tokens, width]``, and their ids."""
        if self.encoder.at_work:
            return
        for row, (_, *tokens) in zip(rows, ids.tolist(), strict=True):
            self._note(row, tokens[: tokens.index(self.end)] if self.end in tokens else tokens)

    def whole(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """The row at the end of each text, which stands for the whole, ``[texts, width]``.

        ``texts`` are token ids without start and end, equally many each.
        """
        key = tuple(map(tuple, texts))
        found = self.wholes.get(key)
        if found is None:
            if len(self.wholes) >= self.READ:
                self.wholes.clear()
            found = self.wholes[key] = self.encoder(texts)
        return found

    def close(self) -> None:
        """Hear no more."""
        if self.listening:
            self.listening.remove()
            self.listening = None

    def _note(self, row: Tensor, tokens: Sequence[int]) -> None:
        if len(self.seen) >= self.LIMIT:
            del self.seen[next(iter(self.seen))]
        self.seen[row_digest(row.to(self.dtype))] = tuple(tokens)


class _Encoder:
    """A model's text encoder for guards; a copy of the denoiser shares it."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.now = threading.local()

    @property
    def at_work(self) -> bool:
        """Whether this thread reads a guard's texts, which no prompt has."""
        return getattr(self.now, "busy", False)

    @torch.no_grad()
    def __call__(self, texts: Sequence[Sequence[int]]) -> Tensor:
        start = int(self.model.read([""])[0].ids[0, 0])
        end = self.model.text_encoders[0].end
        ids = torch.tensor([[start, *text, end] for text in texts])
        self.now.busy = True
        try:
            with self.model.frozen():
                return self.model.embed(TextInput(ids)).rows[:, -1]
        finally:
            self.now.busy = False

    def __deepcopy__(self, memo: Any) -> "_Encoder":
        return self
