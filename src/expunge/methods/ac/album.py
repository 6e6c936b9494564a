"""The pictures that Ablating Concepts trains on: latents, each with its prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from expunge.method.run import Run
from expunge.pictures import Pictures, latents_of, picture_bytes, pictures_of
from expunge.seeding import derive, generator, integer
from expunge.training.latents import TrajectoryPoint, latents_at

Choice = TypeVar("Choice")
Pairs = Sequence[tuple[str, str]]
"""Prompts of an anchor, each with a prompt of the target."""


class Drawing(NamedTuple):
    """How the model draws pictures."""

    images: int
    """For each concept, and as many again of the prompts to keep, if any."""
    steps: int
    guidance_scale: float


class PictureKey(NamedTuple):
    """Identifies a picture: the prompt that it is drawn from, or the words it is given for."""

    words: str
    number: int
    given: bool = False


class AlbumEntry(NamedTuple):
    """A picture with the teacher's prompt, and the student's, one of which is used at a time."""

    key: PictureKey
    teacher: str
    student: tuple[str, ...]


PromptedPicture = tuple[int, str, str]
"""A picture's row, the teacher's prompt and the student's prompt."""


@dataclass(frozen=True)
class Album:
    """Pictures as latents, with their prompts."""

    mean: Tensor
    """``[pictures, channels, height, width]``."""
    deviation: Tensor
    """Shaped like ``mean``; 0 for pictures that were drawn."""
    places: Mapping[PictureKey, int]
    """The row of each picture."""
    targets: Sequence[Sequence[AlbumEntry]]
    """For each concept: pictures of its anchor; the student's prompts name the target."""
    others: Sequence[AlbumEntry]
    """Pictures of the prompts to keep; student and teacher have the same prompt."""

    def target(self, draws: torch.Generator) -> PromptedPicture:
        """A random picture of a concept's anchor, with a prompt of the target for the student."""
        row = _one(_one(self.targets, draws), draws)
        return self.places[row.key], row.teacher, _one(row.student, draws)

    def kept(self, draws: torch.Generator) -> PromptedPicture:
        """A random picture with one prompt for both, of an anchor or, half the time, to keep."""
        anchors = _one(self.targets, draws)
        pools = (self.others, anchors) if self.others else (anchors,)
        row = _one(_one(pools, draws), draws)
        return self.places[row.key], row.teacher, row.teacher


def collected(
    run: Run,
    pairs: Sequence[Pairs],
    kept: Sequence[str],
    drawing: Drawing,
    pictures: Mapping[str, Pictures] | None,
) -> Album:
    """All pictures, given or drawn, with their prompts.

    Concepts whose anchors share a prompt share its pictures.

    Args:
        run: the training, with its concepts.
        pairs: prompts of each concept.
        kept: prompts whose predictions stay; their pictures are always drawn.
        drawing: how pictures are drawn.
        pictures: the user's, by the anchors' words; without them the model draws the anchors.

    Raises:
        ExpungeError: pictures are given, but an anchor has none.
    """
    erase, model = run.policy.erase, run.model
    own = {
        words: picture_bytes(pictures_of(model, pictures, words))
        for words in dict.fromkeys(concept.replacement for concept in erase)
        if pictures is not None
    }
    targets = [
        _rows(run, some, drawing.images, concept.replacement, own)
        for concept, some in zip(erase, pairs, strict=True)
    ]
    stays = _turns(run, kept, drawing.images * len(erase)) if kept else []
    others = [AlbumEntry(key, key.words, (key.words,)) for key in stays]
    # Given pictures come first, in the order of ``own``: the anchors' are given all, or none.
    keys = list(dict.fromkeys(row.key for rows in (*targets, others) for row in rows))
    blocks = [latents_of(model, block) for block in own.values()]
    if asked := [key for key in keys if not key.given]:
        drawn = _drawn_latents(run, asked, drawing)
        blocks.append((drawn, torch.zeros_like(drawn)))
    mean, deviation = (torch.cat(column) for column in zip(*blocks, strict=True))
    return Album(mean, deviation, {key: at for at, key in enumerate(keys)}, targets, others)


def _rows(
    run: Run, pairs: Pairs, images: int, words: str, own: Mapping[str, Tensor]
) -> list[AlbumEntry]:
    """The pictures of a concept's anchor, with their prompts."""
    targets: dict[str, list[str]] = {}
    for anchor, target in pairs:
        targets.setdefault(anchor, []).append(target)
    turns = _turns(run, list(targets), len(own[words]) if own else images)
    keys = [PictureKey(words, number, given=True) for number in range(len(turns))] if own else turns
    return [
        AlbumEntry(key, turn.words, tuple(targets[turn.words]))
        for key, turn in zip(keys, turns, strict=True)
    ]


def _turns(run: Run, prompts: Sequence[str], count: int) -> list[PictureKey]:
    """``count`` pictures; the prompts take turns, in an order that the seed decides."""
    order = torch.randperm(len(prompts), generator=generator(run.seed, "ac prompts")).tolist()
    return [PictureKey(prompts[order[n % len(order)]], n // len(order)) for n in range(count)]


def _drawn_latents(run: Run, keys: Sequence[PictureKey], drawing: Drawing) -> Tensor:
    """Latents of pictures that the frozen model draws, ``[pictures, channels, height, width]``.

    They are the ends of the trajectories: no picture is decoded and encoded again.
    """
    return latents_at(
        run,
        "pictures",
        [key.words for key in keys],
        [derive(run.seed, "ac picture", key.words, key.number) for key in keys],
        [TrajectoryPoint(number, drawing.steps) for number in range(len(keys))],
        steps=drawing.steps,
        guidance_scale=drawing.guidance_scale,
    ).float()


def _one(items: Sequence[Choice], draws: torch.Generator) -> Choice:
    return items[integer(draws, 0, len(items))]
