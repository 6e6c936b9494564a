"""What comes back, and how exactly, when concepts are removed from an edit.

Zhao et al., "Separable Multi-Concept Erasure from Diffusion Models", arXiv 2402.05947, claim that
erased concepts can be restored one by one. A concept counts as restored exactly if every weight
is what it would be had the concept never been erased. With all concepts removed, that is the base.
"""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from expunge.edits.applied import Applied, check_unedited
from expunge.edits.edit import Edit
from expunge.errors import ExpungeError
from expunge.evaluation.recognition import Recognise, Seen, look
from expunge.evaluation.suite import Record
from expunge.generation import ImageRequest, Sampler
from expunge.models import Model
from expunge.statistics.rates import Estimate, Rate, paired_difference


class Restored(Record):
    """The model after some concepts were removed from its applied edit."""

    concepts: tuple[str, ...]
    """The concepts that were removed."""
    deviation: float
    """Largest difference of any weight from what it would be had they never been erased.

    Gates don't change weights; for them, compare the pictures.
    """
    base_bits: bool
    """Whether all weights are the base's, bit for bit; expected where nothing is left erased."""
    base: Rate
    """Pictures of these concepts that are right, drawn by the base model."""
    restored: Rate
    """The same for the restored model, on the same prompts and seeds."""
    difference: Estimate
    """Restored minus base, paired."""
    same_pictures: Rate
    """Pictures of these concepts that equal the base's, byte for byte."""
    still_erased: Rate | None
    """Pictures of the still erased concepts that show them; ``None`` if no concept is left."""


class Restoration(Record):
    """A row for each set of concepts that was removed from one edit."""

    edit: str
    """Id of the edit."""
    summary: str
    sampler: Sampler
    rows: tuple[Restored, ...]


def separable(edit: Edit) -> tuple[tuple[str, ...], ...]:
    """The concepts of an edit in groups; those of one group can only be removed together."""
    groups: list[tuple[str, ...]] = []
    for part in edit.components:
        joined = tuple(concept.target for concept in part.provenance.concepts)
        for group in [group for group in groups if {*group} & {*joined}]:
            groups.remove(group)
            joined = (*group, *joined)
        groups.append(tuple(dict.fromkeys(joined)))
    return tuple(groups)


def restoration(
    model: Model,
    edit: Edit,
    asked: Mapping[str, Sequence[ImageRequest]],
    recognise: Recognise,
    *,
    sets: Sequence[Collection[str]] | None = None,
    sampler: Sampler | None = None,
) -> Restoration:
    """Remove sets of concepts from an applied edit, and compare weights and pictures.

    Args:
        model: the base model, without any edit applied; it is unchanged afterwards.
        edit: what is taken apart.
        asked: pictures to draw of each concept of the edit, by its target words.
        recognise: whether each picture shows the concept that it was asked for.
        sets: concepts to remove together; by default each separable group alone, then all.
        sampler: how pictures are drawn; by default as the model usually is.

    Raises:
        ExpungeError: the model has an edit applied, the edit isn't for it, a set can't be taken
            out, no picture of a concept is asked for, or the judge fails.
    """
    check_unedited(model, "the base is measured too")
    targets = tuple(concept.target for concept in edit.concepts)
    if missing := [target for target in targets if not asked.get(target)]:
        raise ExpungeError(f"no picture of {missing[0]!r} is asked for; each concept needs some")
    parts, sampler = separable(edit), Sampler.of(model, sampler)
    chosen = ([*parts, targets] if len(parts) > 1 else [targets]) if sets is None else sets
    taken = [_part(edit, concepts) for concepts in chosen]
    words = [target for target in targets for _ in asked[target]]
    requests = [request for target in targets for request in asked[target]]
    base = look(model, requests, words, recognise, sampler)
    bits = weight_bits(model)
    rows = []
    for part in taken:
        concepts = tuple(concept.target for concept in part.concepts)
        deviation = exactness(model, edit, concepts)
        with _taken_out(model, edit, part):
            same = weight_bits(model) == bits
            seen = look(model, requests, words, recognise, sampler)
        rows.append(_row(concepts, deviation, same, words, base, seen))
    return Restoration(edit=edit.id, summary=edit.summary(), sampler=sampler, rows=tuple(rows))


def _row(
    concepts: tuple[str, ...],
    deviation: float,
    same: bool,
    words: Sequence[str],
    base: Seen,
    seen: Seen,
) -> Restored:
    own = [index for index, word in enumerate(words) if word in concepts]
    others = [seen.right[index] for index in range(len(words)) if index not in own]
    before, after = ([one.right[index] for index in own] for one in (base, seen))
    equal = [base.pictures[index].tobytes() == seen.pictures[index].tobytes() for index in own]
    return Restored(
        concepts=concepts,
        deviation=deviation,
        base_bits=same,
        base=Rate.of(before),
        restored=Rate.of(after),
        difference=paired_difference(before, after),
        same_pictures=Rate.of(equal),
        still_erased=Rate.of(others) if others else None,
    )


def exactness(model: Model, edit: Edit, concepts: Collection[str]) -> float:
    """How far the weights are off after ``concepts`` were removed from the applied edit.

    The largest difference of any changed weight from what it is where the rest of the edit was
    applied alone; 0 is exact. The model, which has no edit applied, is unchanged afterwards.

    Raises:
        ExpungeError: no concept is named, or one can't be taken out, or the edit isn't for the
            model.
    """
    part = _part(edit, concepts)
    rest = tuple(one for one in edit.components if one.id not in part.ids)
    with Edit(rest).applied(model) if rest else nullcontext():
        expected = {name: _weight(model, name).clone() for name in edit.changed}
    with _taken_out(model, edit, part):
        differences = (
            (_weight(model, name).double() - weight.double()).abs().max().item()
            for name, weight in expected.items()
        )
        return max(differences, default=0.0)


def weight_bits(model: Model) -> str:
    """SHA-256 of all weights and buffers of the UNet as they are now, bit for bit."""
    total = hashlib.sha256()
    for name, value in sorted(model.denoiser.state_dict().items()):
        total.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
        total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def _part(edit: Edit, concepts: Collection[str]) -> Edit:
    """The part of an edit that is taken out with some concepts."""
    if not concepts:
        raise ExpungeError("no concept to take out; name at least one")
    return edit.only(*concepts)


@contextmanager
def _taken_out(model: Model, edit: Edit, part: Edit) -> Iterator[None]:
    """The model with the edit applied and a part of it taken out again."""
    edit.apply(model)
    try:
        part.revert(model)
        yield
    finally:
        applied = {component.id for component in Applied.to(model).components}
        if left := tuple(one for one in edit.components if one.id in applied):
            Edit(left).revert(model)


def _weight(model: Model, name: str) -> Tensor:
    return model.denoiser.get_parameter(name).detach()
