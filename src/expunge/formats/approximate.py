"""Weights that nearly do what gates do for some prompts, and how far they are off.

Gates open for some prompts and stay shut for others; weights can't. The nearest to it are, for
every key and value projection l, by least squares over the rows x of some prompts::

    min_N  sum w |N x - a_l(x)|^2  +  lam |N|^2        N = (sum w a_l x^T) (sum w x x^T + lam I)^-1

with ``a_l`` what the gates add, in float64. Half of the weight is on prompts with the erased words,
half on prompts to keep. Every third prompt of both is left out of the sums, to measure the error.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from expunge.algebra.ridge import gram, solve
from expunge.concepts import TEMPLATES, Concept, Policy
from expunge.edits.base import Base
from expunge.edits.component import Component, Provenance
from expunge.edits.edit import Edit
from expunge.edits.gates import Gate, gates_together
from expunge.edits.payloads import Dense
from expunge.errors import ExpungeError, Unsupported
from expunge.formats.writing import check_plain
from expunge.models import Model
from expunge.sentences import PLACE

LAMB = 1e-3
"""``lam``, as a share of the mean eigenvalue of the sum of ``w x x^T``."""
EVERY = 3
"""Every third prompt is held out to measure the error."""
MOST = 1024
"""Most prompts of each sort; of more, evenly spaced ones are taken."""
BLOCK = 8
"""Prompts whose additions are held in memory at once."""


class Gap(NamedTuple):
    """The error on held-out prompts."""

    erased: float
    """With erased words: ``|N x - a(x)| / |a(x)|``, over all layers."""
    kept: float | None
    """To keep: the same beside the old keys and values, ``|N x - a(x)| / |W x|``; ``None`` if
    nothing is named to keep."""
    erased_prompts: int
    kept_prompts: int


def approximated(edit: Edit, model: Model) -> tuple[Edit, Gap]:
    """An edit with weights in place of all gates, and how far off it is.

    The prompts come from the edit's record: its concepts and what it keeps, in its sentences and
    the templates. The new edit's provenance records the gap.

    Raises:
        ExpungeError: the edit has no gates, or is for another model.
        Unsupported: gates act elsewhere than on keys and values.
    """
    if edit.guarded:
        check_plain(edit)
    if not edit.gated:
        raise ExpungeError(f"edit {edit.id} has no gates: every format is exact without")
    edit.check_base(model)
    gated = [part for part in edit.components if isinstance(part.payload, Gate)]
    gates = gates_together([part.payload for part in gated])
    names = _names(gates, model)
    erased, kept = _prompts(gated)
    fitted = [
        [p for at, p in enumerate(part) if at % EVERY != EVERY - 1] for part in (erased, kept)
    ]
    held_erased, held_kept = erased[EVERY - 1 :: EVERY], kept[EVERY - 1 :: EVERY]
    changes = _fit(gates, names, model, fitted)
    missed, added, _ = _missed(gates, changes, model, held_erased)
    gap = Gap(missed / added if added else 0.0, None, len(held_erased), len(held_kept))
    if held_kept:
        moved, _, whole = _missed(gates, changes, model, held_kept)
        gap = gap._replace(kept=moved / whole)
    payload = Dense({name: change.float() for name, change in changes.items()})
    record = gated[0].provenance
    provenance = Provenance(
        method="approximated",
        settings={"of": edit.id, "gap": gap._asdict(), "lamb": LAMB, "parts": list(edit.ids)},
        concepts=tuple(dict.fromkeys(c for part in gated for c in part.provenance.concepts)),
        keep=tuple(dict.fromkeys(words for part in gated for words in part.provenance.keep)),
        seed=0,
        base=Base.of(model, names).model_copy(update={"name": record.base.name}),
        versions=record.versions,
    )
    plain = (part for part in edit.components if not isinstance(part.payload, Gate))
    return Edit((*plain, Component(payload, provenance))), gap


def _names(gates: Sequence[Gate], model: Model) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name for gate in gates for name in gate.names))
    if elsewhere := sorted(set(names) - set(model.select("cross_attention.kv"))):
        raise Unsupported(
            f"these gates act on {len(elsewhere)} layers that see the picture too, e.g. "
            f"{elsewhere[0]}; only those on keys and values, which see nothing but the prompt, can "
            "be approximated by weights"
        )
    return names


def _prompts(parts: Sequence[Component]) -> tuple[list[str], list[str]]:
    """Prompts with the erased words, and prompts to keep, of which the first is empty."""
    erased: list[str] = []
    kept: list[str] = []
    for part in parts:
        sentences = tuple(part.provenance.settings.get("contexts") or ())
        for concept in part.provenance.concepts:
            erased += [pair.erase for pair in concept.pairs_in(_around(concept, sentences))]
        if part.provenance.keep and part.provenance.concepts:
            policy = Policy(erase=part.provenance.concepts, keep=part.provenance.keep)
            kept += policy.kept_prompts(sentences)
    if not erased:
        raise ExpungeError("the edit's record names no concept, so there is no prompt to fit it to")
    others = dict.fromkeys(kept)
    return _some(list(dict.fromkeys(erased))), ["", *_some([p for p in others if p])]


def _around(concept: Concept, sentences: tuple[str, ...]) -> tuple[str, ...]:
    own = concept.contexts or sentences
    return tuple(dict.fromkeys((PLACE, *own, *TEMPLATES[concept.kind])))


def _some(prompts: list[str]) -> list[str]:
    if len(prompts) <= MOST:
        return prompts
    return [prompts[at * len(prompts) // MOST] for at in range(MOST)]


@torch.no_grad()
def _additions(
    gates: Sequence[Gate], model: Model, prompts: Sequence[str]
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Rows ``[rows, width]`` and what all gates add to each layer, ``[rows, out]``, in blocks."""
    for at in range(0, len(prompts), BLOCK):
        block = prompts[at : at + BLOCK]
        conditions, tokens = model.encode(block), model.tokenized(block)
        total: dict[str, Tensor] = {}
        for gate in gates:
            for name, addition in gate.additions(conditions, tokens).items():
                added = addition(conditions).double().flatten(0, 1)
                total[name] = total[name] + added if name in total else added
        yield conditions.double().flatten(0, 1), total


def _fit(
    gates: Sequence[Gate], names: Sequence[str], model: Model, sorts: Sequence[Sequence[str]]
) -> dict[str, Tensor]:
    """``N`` of every layer, ``[out, width]`` float64."""
    width = model.text_width
    inner = torch.zeros(width, width, dtype=torch.float64, device=model.device)
    outer = {name: inner.new_zeros(len(model.base_weight(name)), width) for name in names}
    for prompts in filter(None, sorts):
        for rows, added in _additions(gates, model, prompts):
            inner += gram(rows) / len(prompts)
            for name, values in added.items():
                outer[name] += values.T @ rows / len(prompts)
    inner.diagonal().add_(LAMB * inner.trace() / width)
    return {name: solve(inner, product) for name, product in outer.items()}


def _missed(
    gates: Sequence[Gate], changes: dict[str, Tensor], model: Model, prompts: Sequence[str]
) -> tuple[float, float, float]:
    """Norms over all rows and layers of ``N x - a(x)``, ``a(x)`` and ``W x``."""
    sums = torch.zeros(3, dtype=torch.float64, device=model.device)
    for rows, added in _additions(gates, model, prompts):
        for name, change in changes.items():
            values = added[name] if name in added else rows.new_zeros(len(rows), len(change))
            whole = rows @ model.base_weight(name).double().T
            parts = (rows @ change.T - values, values, whole)
            sums += torch.stack([part.square().sum() for part in parts])
    missed, size, whole_size = sums.sqrt().tolist()
    return missed, size, whole_size
