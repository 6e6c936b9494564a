"""CLIP's tokenizer without transformers, whose import takes longer than a closed form.

transformers builds it once for the files of a model. What it built lies in the cache folder, in
the form of the library ``tokenizers``, which transformers' own calls.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer

from expunge.files import cache_folder, digest, replacing, sha256

FACTS = (
    *("model_max_length", "bos_token_id", "eos_token_id", "pad_token", "pad_token_id"),
    "all_special_ids",
)
"""What is asked of a tokenizer beside its ids."""
ANSWERED = {
    *("truncation", "max_length", "padding", "return_tensors", "return_offsets_mapping"),
    "verbose",
}
"""Options of a call that are answered here."""


class Encoded(NamedTuple):
    """What a call gives: lists of numbers, or tensors ``[texts, tokens]``."""

    input_ids: Any
    attention_mask: Any
    """1 for text, 0 for padding."""
    offset_mapping: list[list[tuple[int, int]]]
    """Where each piece begins and ends in its text."""
    words: list[list[int | None]]

    def word_ids(self, text: int) -> list[int | None]:
        """The number of the word that each piece of a text belongs to."""
        return self.words[text]


class ClipTokenizer:
    """The tokenizer of a folder; for what isn't here, transformers' own is asked.

    Args:
        folder: with the files of a ``CLIPTokenizer`` of transformers.

    Raises:
        OSError, ValueError: transformers can't read them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._cached = cache_folder() / "tokenizers" / f"{self._key()}.json"
        found = self._read() or self._built()
        self._backend = Tokenizer.from_str(found["backend"])
        self.added_tokens_encoder: dict[str, int] = found["added_tokens_encoder"]
        self._facts: Mapping[str, Any] = found["facts"]

    def __call__(self, texts: Sequence[str], **options: Any) -> Any:
        """Ids of texts, ``input_ids`` and ``attention_mask``, as transformers gives them."""
        if options.keys() - ANSWERED:
            return self.whole(list(texts), **options)
        length = options.get("max_length", self._facts["model_max_length"])
        self._backend.no_truncation()
        self._backend.no_padding()
        if options.get("truncation"):
            self._backend.enable_truncation(length)
        if options.get("padding") == "max_length":
            pad, word = self._facts["pad_token_id"], self._facts["pad_token"]
            self._backend.enable_padding(length=length, pad_id=pad, pad_token=word)
        encodings = self._backend.encode_batch(list(texts))
        wrap = torch.tensor if options.get("return_tensors") else list
        return Encoded(
            wrap([one.ids for one in encodings]),
            wrap([one.attention_mask for one in encodings]),
            [one.offsets for one in encodings],
            [one.word_ids for one in encodings],
        )

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, those that aren't words among them, as transformers gives it."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=False)
        return text.replace(self._backend.model.end_of_word_suffix, " ").strip()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._facts[name] if name in self._facts else getattr(self.whole, name)

    @cached_property
    def whole(self) -> Any:
        """transformers' tokenizer of the same files."""
        from transformers import CLIPTokenizer

        return CLIPTokenizer.from_pretrained(self.folder, local_files_only=True)

    def _key(self) -> str:
        """A digest of the files and of what reads them."""
        made_by = version("transformers"), version("tokenizers")
        return digest([sha256(self.folder), *made_by, *FACTS])

    def _read(self) -> dict[str, Any] | None:
        """What was built before; none if there is nothing whole."""
        try:
            found = json.loads(self._cached.read_text("utf-8"))
            whole = digest(found["content"]) == found["digest"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return dict(found["content"]) if whole else None

    def _built(self) -> dict[str, Any]:
        content = {
            "backend": self.whole.backend_tokenizer.to_str(),
            "added_tokens_encoder": dict(self.whole.added_tokens_encoder),
            "facts": {name: getattr(self.whole, name) for name in FACTS},
        }
        try:
            with replacing(self._cached) as path:
                path.write_text(json.dumps({"content": content, "digest": digest(content)}))
        except OSError:  # it is built again next time
            pass
        return content
