"""A text encoder with its tokenizer: from words to token ids to rows."""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from expunge.models.clip import ClipText
from expunge.models.hashing import Each
from expunge.models.stored import Layer


class TextInput(NamedTuple):
    """What one text encoder reads: token ids, of which some embeddings may be replaced."""

    ids: Tensor
    """``[batch, tokens]``, with start, end and padding."""
    mask: Tensor | None = None
    """Which of them are no padding, ``[batch, tokens]``, for encoders that want to know."""
    rows: Tensor | None = None
    """Token embeddings in the place of the table's, ``[pieces, width]`` or one each
    ``[batch, pieces, width]``; gradients reach them."""
    at: Tensor | None = None
    """Where they stand, ``[batch, pieces]``."""

    def replaced(self, rows: Tensor, at: Tensor) -> "TextInput":
        """The same ids with these embeddings at these places."""
        return self._replace(rows=rows, at=at)

    def first(self, count: int) -> "TextInput":
        """The first ``count`` tokens; no embedding behind them may be replaced."""
        mask = None if self.mask is None else self.mask[:, :count]
        return self._replace(ids=self.ids[:, :count], mask=mask)


BLOCK = 1024
"""Prompts that are tokenized at a time."""

Spell = Callable[[list[str], Any], list[str]]
"""Prompts as a pipeline hands them to a tokenizer, from prompts as users write them."""


_TURN = threading.Lock()
"""One thread at a time asks a tokenizer, which keeps how it cuts and pads from call to call."""


@contextmanager
def _without_remarks() -> Iterator[None]:
    """Inside, transformers doesn't remark on what is cut off, which is for us to say."""
    logger = logging.getLogger("transformers.tokenization_utils_base")

    def silent(record: logging.LogRecord) -> bool:
        return False

    logger.addFilter(silent)
    try:
        yield
    finally:
        logger.removeFilter(silent)


class TextEncoder:
    """One text encoder of a pipeline."""

    def __init__(self, tokenizer: Any, network: nn.Module, spell: Spell | None = None) -> None:
        """``spell`` is what the pipeline does to prompts before it tokenizes them.

        In diffusers that is ``maybe_convert_prompt``, which writes out learnt tokens of several
        vectors.
        """
        self.tokenizer = tokenizer
        self.network: Any = network
        self.spell = spell

    @property
    def window(self) -> int:
        """Tokens of a prompt at most, with start and end."""
        return int(self.tokenizer.model_max_length)

    @property
    def end(self) -> int:
        """The id of the token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def pads_with_end(self) -> bool:
        """Whether padding is the end of the text, again and again."""
        return bool(self.tokenizer.pad_token_id == self.tokenizer.eos_token_id)

    @property
    def causal(self) -> bool:
        """Whether each row depends on those before it alone."""
        if isinstance(self.network, ClipText):
            return True
        from transformers import CLIPTextModel, CLIPTextModelWithProjection

        return isinstance(self.network, CLIPTextModel | CLIPTextModelWithProjection)

    @property
    def table(self) -> Tensor:
        """Token embeddings, ``[vocabulary, width]``."""
        found = self.network.get_input_embeddings()
        table: Tensor = found.read("weight") if isinstance(found, Layer) else found.weight
        return table

    def weights(self) -> Each:
        """The parameters in their order; names differ between versions of transformers."""
        if isinstance(self.network, ClipText):
            return self.network.weights()
        return Each([("", value.detach) for value in self.network.parameters()])

    def spelt(self, prompts: Sequence[str]) -> list[str]:
        """Prompts as the tokenizer is given them."""
        if not self.spell:
            return list(prompts)
        with _TURN, _without_remarks():
            return self.spell(list(prompts), self.tokenizer)

    def tokenize(self, prompts: Sequence[str], **options: Any) -> Any:
        """What the tokenizer gives, cut to the window."""
        texts = self.spelt(prompts)
        with _TURN:
            return self.tokenizer(texts, truncation=True, max_length=self.window, **options)

    def pieces(self, prompts: Sequence[str]) -> list[int]:
        """Tokens of each whole prompt, without its start and end, even where it is cut."""
        found: list[int] = []
        for start in range(0, len(prompts), BLOCK):
            texts = self.spelt(prompts[start : start + BLOCK])
            with _TURN, _without_remarks():
                whole = self.tokenizer(texts, truncation=False)
            found += [len(ids) - 2 for ids in whole.input_ids]
        return found

    def read(self, prompts: Sequence[str]) -> TextInput:
        """Prompts as token ids, padded to the window."""
        tokens = self.tokenize(prompts, padding="max_length", return_tensors="pt")
        masked = getattr(self.network.config, "use_attention_mask", False)
        return TextInput(tokens.input_ids, tokens.attention_mask if masked else None)

    def run(self, text: TextInput, **options: Any) -> Any:
        """The network's output; ``options`` are its own."""
        device = self.network.device
        mask = None if text.mask is None else text.mask.to(device)
        with self._replaced(text):
            return self.network(text.ids.to(device), attention_mask=mask, **options)

    @contextmanager
    def _replaced(self, text: TextInput) -> Iterator[None]:
        """Inside, the table gives the rows of ``text`` at their places."""
        rows, at = text.rows, text.at
        if rows is None or at is None:
            yield
            return
        batch = torch.arange(len(at))[:, None]

        def put(table: nn.Module, given: Any, output: Tensor) -> Tensor:
            changed = output.clone()
            changed[batch, at] = rows.to(output.dtype)
            return changed

        handle = self.network.get_input_embeddings().register_forward_hook(put)
        try:
            yield
        finally:
            handle.remove()
