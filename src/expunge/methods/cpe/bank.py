"""What CPE trains on: prompts to erase, each with its replacement, and anchors that stay.

An anchor is a mixture of two prompts' embeddings, both with added noise::

    a = m (e_1 + v_1) + (1 - m) (e_2 + v_2)      v = noise |e| N(0, I)      m uniform in [0, 1]

The prompts are words to keep, in the same sentences as the erased words. Each prompt is encoded
once for all concepts. Its rows are read from the host's memory or, in a run with a folder, from a
file.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import BeforeValidator, PlainSerializer
from torch import Tensor

from expunge.concepts import Concept, Context, WordList, listed
from expunge.files import PathLike, digest
from expunge.method.run import Run
from expunge.models import Model
from expunge.progress import track
from expunge.prompts import lists
from expunge.sentences import PLACE, fill
from expunge.settings import or_file
from expunge.spelling import names
from expunge.training.cache import load_cached, save_cached

BLOCK = 64
"""Number of prompts encoded at a time."""
LISTED = 20
"""A record lists up to this many words; of more it stores a digest."""


def _record(words: Sequence[str]) -> list[str] | dict[str, Any]:
    if len(words) <= LISTED:
        return list(words)
    return {"count": len(words), "sha256": digest(list(words))}


def _captions(path: PathLike) -> tuple[str, ...]:
    return lists.captions(path).prompts


_FILES = (".txt", ".csv")

WordsSetting = Annotated[
    WordList,
    or_file(_captions, names_file=lambda text: text.endswith(_FILES)),
    PlainSerializer(_record, return_type=list | dict),
]
"""Words, or the path of a file of them (see ``lists.captions``); a record of many is a digest."""

SentencesSetting = Annotated[
    tuple[Context, ...],
    BeforeValidator(listed),
    or_file(lists.contexts, names_file=lambda text: PLACE not in text),
]
"""Sentences with ``{}``, or the path of a file with one on each line."""


def mixed(rows: Tensor, gaussian: Tensor, mixing: Tensor, noise: float) -> Tensor:
    """Anchors ``[..., count, tokens, width]``, each a mixture of two embeddings.

    Args:
        rows: embeddings, ``[..., 2 count, tokens, width]``.
        gaussian: normally distributed numbers, shaped like one bank's rows.
        mixing: m, the weight of the first embedding of each pair, ``[count]``.
        noise: its size along each axis, as a share of an embedding's norm.
    """
    norms = torch.linalg.vector_norm(rows, dim=(-2, -1), keepdim=True)
    blurred = torch.addcmul(rows, norms, gaussian, value=noise)
    first, second = blurred[..., ::2, :, :], blurred[..., 1::2, :, :]
    weight = mixing.to(rows)[:, None, None]
    return torch.lerp(second, first, weight)


def nearest_names(
    model: Model, pool: Sequence[str], words: Sequence[str], count: int, *, whole: bool = True
) -> list[list[str]]:
    """For each of ``words``, the names in a pool with the most similar embeddings (by cosine).

    Names that contain the words themselves are left out: as whole words or, in the released
    program, as any part of the name.
    """

    def directions(prompts: Sequence[str]) -> Tensor:
        return torch.nn.functional.normalize(model.encode(prompts).float().flatten(1))

    if not pool:
        return [[] for _ in words]
    wanted = directions(words)
    blocks = [pool[at : at + BLOCK] for at in range(0, len(pool), BLOCK)]
    parts = [directions(block) for block in track(blocks, "names", total=len(blocks))]
    found = []
    for row, word in zip(wanted @ torch.cat(parts).T, words, strict=True):
        order = row.argsort(descending=True, stable=True).tolist()
        others = [
            pool[at]
            for at in order
            if not (names(pool[at], [word]) if whole else word.lower() in pool[at].lower())
        ]
        found.append(others[:count])
    return found


def in_sentences(words: Iterable[str], sentences: Sequence[str]) -> list[str]:
    """Every word in every sentence."""
    return [fill(sentence, word) for word in words for sentence in sentences]


def mentions(concept: Concept, prompts: Sequence[str]) -> list[bool]:
    """Which prompts contain one of the concept's phrases, as whole words."""
    return [names(prompt, concept.phrases) for prompt in prompts]


class TrainingPrompts(NamedTuple):
    """The prompts of a training."""

    pairs: tuple[tuple[tuple[str, str], ...], ...]
    """For each concept: prompts to erase, each with its replacement."""
    banks: tuple[tuple[str, ...], ...]
    """Prompts that anchors are mixed from: one list for all concepts, or one for each."""
    own: Tensor
    """Which prompts of the bank name the concept itself, ``[concepts, prompts]``; or empty."""


class Bank:
    """The embeddings of all training prompts, each encoded once."""

    def __init__(self, run: Run, plan: TrainingPrompts) -> None:
        self.plan = plan
        self.device = run.model.device
        flat = [prompt for pairs in plan.pairs for pair in pairs for prompt in pair]
        prompts = list(dict.fromkeys(["", *flat, *(p for bank in plan.banks for p in bank)]))
        index = {prompt: number for number, prompt in enumerate(prompts)}
        self.rows = encoded(run, prompts)
        """All embeddings, that of the empty prompt first, ``[prompts, tokens, width]``."""
        self.pairs = [
            torch.tensor([[index[one], index[two]] for one, two in pairs]) for pairs in plan.pairs
        ]
        self.banks = [torch.tensor([index[prompt] for prompt in bank]) for bank in plan.banks]

    def targets(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Target and neutral embeddings, ``[concepts, tokens, width]``.

        ``chosen`` selects a pair of each concept by a number in [0, 1), ``[concepts]``.
        """
        picked = torch.stack(
            [_picked(pairs, at) for pairs, at in zip(self.pairs, chosen, strict=True)]
        )
        target, neutral = self._read(picked[:, 0]), self._read(picked[:, 1])
        return target, neutral

    def anchors(
        self, chosen: Tensor, mixing: Tensor, gaussian: Tensor, noise: float
    ) -> tuple[Tensor, Tensor | None]:
        """Anchors, the empty prompt last, and which of them count for which concept.

        ``chosen`` selects two prompts for each anchor by numbers in [0, 1). The anchors are
        ``[anchors, tokens, width]``, or ``[concepts, anchors, ...]`` if each concept has a bank.
        """
        places = [(chosen * len(bank)).long() for bank in self.banks]
        rows = torch.stack(
            [self._read(bank[at]) for bank, at in zip(self.banks, places, strict=True)]
        )
        made = mixed(rows, gaussian.to(rows), mixing, noise)
        empty = self._read(torch.zeros(1, dtype=torch.long)).expand(len(made), -1, -1, -1)
        whole = torch.cat([made, empty], 1)
        counted = None
        if self.plan.own.numel():
            own = self.plan.own[:, places[0]].view(len(self.plan.own), -1, 2).any(-1)
            counted = torch.nn.functional.pad(~own, (0, 1), value=True).to(self.device)
        return (whole if len(whole) > 1 else whole[0]), counted

    def _read(self, numbers: Tensor) -> Tensor:
        return self.rows[numbers].to(self.device, torch.float32)


def _picked(items: Tensor, at: Tensor) -> Tensor:
    return items[int(at * len(items))]


def encoded(run: Run, prompts: Sequence[str]) -> Tensor:
    """Embeddings ``[prompts, tokens, width]`` in the model's precision, on the host.

    The blocks never change, so that a resumed run gets the same numbers.
    """
    wanted = digest(
        {
            "prompts": list(prompts),
            "base": run.model.fingerprint() if run.folder else "",
            "precision": f"{run.model.dtype} on {run.model.device.type}",
        }
    )
    path = run.folder / "prompts.safetensors" if run.folder else None
    found = load_cached(path, wanted) if path else None
    if found:
        return found["rows"]
    blocks = [prompts[at : at + BLOCK] for at in range(0, len(prompts), BLOCK)]
    rows: Tensor | None = None
    for number, block in enumerate(track(blocks, "prompts", total=len(blocks))):
        part = run.model.encode(block).cpu()
        if rows is None:
            rows = part.new_empty(len(prompts), *part.shape[1:])
        rows[number * BLOCK : number * BLOCK + len(block)] = part
    assert rows is not None  # the empty prompt is always there
    if path and run.process == 0:
        save_cached(path, {"rows": rows}, wanted)
    return rows
