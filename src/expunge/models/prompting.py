"""From prompts to conditions: the half of a model that reads."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from expunge.errors import Unsupported
from expunge.models.calls import Hear, Listening
from expunge.models.condition import Condition
from expunge.models.hashing import Each, Roundings, digest
from expunge.models.text import TextEncoder, TextInput
from expunge.models.window import Cut

T = TypeVar("T")

BLOCK = 64
"""Prompts that are encoded side by side."""
SPARE = 64
"""Rows that cost as much as another pass through a text encoder that lies on disk."""


class Prompting(ABC):
    """What a model makes of prompts."""

    name: str

    def __init__(self) -> None:
        self.remembered: dict[str, Condition] = {}
        """What ``remember`` was given, by prompt."""
        self._read: dict[str, Condition] | None = None
        """What was read inside ``reading_once``."""
        self._hearing: list[Hear] = []

    @property
    @abstractmethod
    def text_encoders(self) -> tuple[TextEncoder, ...]:
        """In the order of ``embed``'s arguments."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where conditions are wanted."""

    @abstractmethod
    def frozen(self) -> AbstractContextManager[None]:
        """Inside, networks are in evaluation mode and no parameter wants gradients."""

    @abstractmethod
    def embed(self, *texts: TextInput) -> Condition:
        """The condition of a batch of texts, one input for each text encoder.

        Gradients reach the inputs' ``rows`` and the text encoders' parameters that want them, from
        the denoiser and through gates. Gates are told the token ids, but for replaced ones.
        """

    @property
    def causal(self) -> bool:
        """Whether no row of a condition depends on what follows it in the prompt."""
        return False

    @property
    def window(self) -> int:
        """Tokens of a prompt at most, with start and end, in the first text encoder."""
        return self.text_encoders[0].window

    def read(self, prompts: Sequence[str]) -> tuple[TextInput, ...]:
        """Prompts as ``embed`` takes them."""
        return tuple(encoder.read(prompts) for encoder in self.text_encoders)

    def condition(self, prompts: Sequence[str]) -> Condition:
        """What the denoiser is told of each prompt, cut to the window; without gradients."""
        known = self._known(prompts)
        unknown = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]
        for start in range(0, len(unknown), BLOCK):
            batch = unknown[start : start + BLOCK]
            with torch.no_grad(), self.frozen():
                made = self.embed(*self.read(batch))
            read = {prompt: made[at : at + 1] for at, prompt in enumerate(batch)}
            known.update(read)
            if self._read is not None and len(self._read) < BLOCK:
                self._read.update(read)
        return Condition.cat([known[prompt] for prompt in prompts])

    def _known(self, prompts: Sequence[str]) -> dict[str, Condition]:
        """The conditions of those prompts that needn't be read."""
        known = {**(self._read or {}), **self.remembered}
        return {prompt: known[prompt] for prompt in prompts if prompt in known}

    @contextmanager
    def reading_once(self) -> Iterator[None]:
        """Inside, conditions of the first prompts are kept, and prompts aren't read again.

        For work that reads few prompts several times, while the text encoder stays as it is.
        """
        before, self._read = self._read, {}
        try:
            yield
        finally:
            self._read = before

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """The rows of each prompt's condition, ``[prompts, tokens, width]``."""
        return self.condition(prompts).rows

    def encode_rows(self, prompts: Sequence[str], positions: Sequence[int]) -> Tensor:
        """One row of each prompt's condition, ``[prompts, width]``.

        Where a row doesn't depend on what follows it, as in CLIP, nothing after it is computed: for
        a few words that is a tenth of the work.
        """
        wanted = list(zip(prompts, positions, strict=True))
        conditions = self._known(prompts)
        known = {(p, at): conditions[p].rows[0, at] for p, at in wanted if p in conditions}
        for batch in _as_long(sorted({*wanted} - known.keys()), lambda pair: pair[1]):
            encoded = self._first_rows([prompt for prompt, _ in batch], batch[0][1] + 1)
            known.update((pair, rows[pair[1]]) for pair, rows in zip(batch, encoded, strict=True))
        return torch.stack([known[pair] for pair in wanted])

    def encode_beginnings(self, prompts: Sequence[str], padding: int) -> list[Tensor]:
        """The rows of each prompt up to the end of its text and a few of padding.

        Without them all, short prompts take a fraction of the work. Where a row depends on what
        follows it, the whole window is given.

        Args:
            prompts: any number.
            padding: rows after that of the end of the text.

        Returns:
            ``[rows, width]`` for each prompt.
        """
        if not self.causal:
            return list(self.encode(prompts))
        ends = [len(ids) + 2 + padding for ids in self.tokenized(prompts)]
        known = self._known(prompts)
        found = {at: known[p].rows[0, : ends[at]] for at, p in enumerate(prompts) if p in known}
        for block in _as_long(sorted({*range(len(prompts))} - found.keys()), ends.__getitem__):
            encoded = self._first_rows([prompts[at] for at in block], ends[block[0]])
            found.update((at, rows[: ends[at]]) for at, rows in zip(block, encoded, strict=True))
        return [found[at] for at in range(len(prompts))]

    @torch.no_grad()
    def _first_rows(self, prompts: Sequence[str], count: int) -> Tensor:
        """At least the first ``count`` rows of each prompt, ``[prompts, rows, width]``."""
        if not self.causal:
            return self.encode(prompts)
        with self.frozen():
            return self.embed(*(text.first(count) for text in self.read(prompts))).rows

    def unconditional(self) -> Condition:
        """What guidance leads away from when drawing: a condition of one prompt."""
        return self.condition([""])

    def remember(self, conditions: Mapping[str, Condition]) -> None:
        """Use these conditions, of one prompt each, for these prompts from now on."""
        self.remembered.update({prompt: one.to(self.device) for prompt, one in conditions.items()})

    def tokens(self, prompt: str) -> list[int]:
        """Token ids of a prompt without its start and end, in the first text encoder."""
        return self.tokenized([prompt])[0]

    def tokenized(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of each prompt without its start and end, in the first text encoder."""
        if not prompts:
            return []
        ids = self.text_encoders[0].tokenize(prompts).input_ids
        return [row[1:-1] for row in ids]

    def last_token(self, prompt: str) -> int:
        """Row of a prompt's last word piece; 0, the start row, for an empty prompt."""
        return len(self.tokens(prompt))

    def last_name(self, prompt: str) -> int:
        """Row where the learnt token begins that ends a prompt; else that of the last word piece.

        A learnt token may have several vectors, and all of them are the concept.
        """
        last = self.last_token(prompt)
        learnt = self.text_encoders[0].tokenizer.added_tokens_encoder
        ends = [token for token in learnt if prompt.rstrip().endswith(token)]
        if not ends or not last:
            return last
        return max(1, last + 1 - len(self.tokens(max(ends, key=len))))

    def cut(self, prompts: Sequence[str]) -> list[Cut]:
        """The prompts of which a text encoder reads only the beginning, in their order.

        Of several text encoders, the one that reads the least of a prompt counts.
        """
        found: dict[int, Cut] = {}
        for encoder in self.text_encoders:
            read = encoder.window - 2
            for at, pieces in enumerate(encoder.pieces(prompts)):
                if pieces > read and (at not in found or read < found[at].read):
                    found[at] = Cut(at, prompts[at], pieces, read)
        return [found[at] for at in sorted(found)]

    def text_fingerprint(self) -> str:
        """SHA-256 of the text encoders' weights in their order, rounded to half precision.

        Without their names, which differ between versions of transformers.
        """
        return digest(self._text_weights())

    def text_roundings(self) -> Roundings:
        """What tells the text encoders in bfloat16 from others."""
        return Roundings.of(self._text_weights())

    def _text_weights(self) -> Each:
        return Each.joined([encoder.weights() for encoder in self.text_encoders])

    def listen(self, hear: Hear) -> "Listening":
        """Tell ``hear`` of every text that is encoded from now on, by the pipeline too.

        Raises:
            Unsupported: rows come from several text encoders.
        """
        if len(self.text_encoders) > 1:
            raise Unsupported(
                f"{self.name!r} has {len(self.text_encoders)} text encoders; following tokens "
                "through them isn't there yet"
            )
        return Listening(self._hearing, hear, self.text_encoders[0].network)

    def _tell_replaced(self, rows: Tensor, text: TextInput) -> None:
        """Correct what was heard of a text: a replaced token has no id."""
        if text.at is None:
            return
        ids = text.ids.clone()
        ids[torch.arange(len(ids))[:, None], text.at.to(ids.device)] = -1
        for hear in self._hearing:
            hear(rows.detach(), ids)


def _as_long(items: Sequence[T], length: Callable[[T], int]) -> Iterator[list[T]]:
    """Items of about the same length together, the longest first.

    A block holds ``BLOCK`` items at most, and ``SPARE`` rows are computed for nothing in it.
    """
    block: list[T] = []
    spare = 0
    for item in sorted(items, key=length, reverse=True):
        more = length(block[0]) - length(item) if block else 0
        if len(block) == BLOCK or spare + more > SPARE:
            yield block
            block, spare, more = [], 0, 0
        block.append(item)
        spare += more
    if block:
        yield block
