"""The released Ablating Concepts programs: what each trains, shows, and compares.

They differ in::

    variant     pictures of   teacher                      the anchor's own loss
    diffusers   the anchor    the student as it is now     beside the noise, a plain mean
    compvis     the anchor    the student as it is now     beside the noise, a masked mean
    sepme       the target    the frozen model             beside the frozen model, times 10

A masked mean divides the sum over all channels by the size of a mask that has only one: it is as
many times a mean as latents have channels.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from PIL import Image, ImageOps
from torch import Tensor

from expunge.concepts import TEMPLATES, Concept
from expunge.generation.sampler import Sampler, SchedulerName
from expunge.generation.sampling import ImageRequest, sample
from expunge.method.batch import Batch
from expunge.method.run import Run
from expunge.method.student import Student
from expunge.methods.ac.prompts import (
    PREFIX,
    SUFFIX,
    anchor_prompts,
    predict_start_detached,
    target_prompts,
)
from expunge.models import Condition, Model
from expunge.pictures import Pictures, latents_of, picture_bytes, pictures_of
from expunge.seeding import derive, generator, integer

Variant = Literal["diffusers", "compvis", "sepme"]
LossType = Literal["model-based", "noise-based"]

_RELEASED: dict[str, Any] = {
    "prior_weight": 0.0,
    "weight_decay": 0.01,
    "images": 1000,
    "augment": True,
    "hflip": True,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "diffusers": _RELEASED,
    "compvis": {**_RELEASED, "max_grad_norm": None, "num_inference_steps": 200},
    "sepme": {
        "parameter_group": "cross-attention",
        "prior_weight": 10.0,
        "iterations": 51,
        "lr": 1e-5,
        "optimizer": "torch.optim.Adam",
        "max_grad_norm": None,
        "gradients": "cumulative",
        "batch_size": 1,
        "accumulation": 1,
        "images": 1000,
        "num_inference_steps": 100,
        "guidance_scale": 7.5,
    },
}
"""What a released program does when nothing is said, where that isn't the method's default."""


GROUPS: dict[str | None, dict[str, str]] = {
    None: {
        "cross-attn": "cross_attention.kv",
        "attn": "self_attention | cross_attention",
        "full-weight": "all",
    },
    "diffusers": {
        "cross-attn": "cross_attention.kv",
        "attn": "self_attention | cross_attention",
        "full-weight": "all",
    },
    "compvis": {
        "cross-attn": "cross_attention.kv",
        "crossattn": "attention.qkv",
        "full-weight": "all",
    },
    "sepme": {"cross-attention": "cross_attention"},
}
"""What is trained, by the name that a program's command line gives it; ``None`` is corrected."""

STYLE: dict[str, tuple[str, ...]] = {
    "diffusers": (SUFFIX, PREFIX, PREFIX),
    "compvis": tuple(
        form.replace("{words}", words)
        for form in (SUFFIX, "{words} inspired painting, {prompt}", PREFIX)
        for words in ("{words}", "{words} {words}")
    ),
}
"""Where a style's words go in a prompt; one of these is drawn."""
SMALL, LARGE = ("a far away ", "very small "), ("zoomed in ", "close up ")
"""What goes before the target's prompt when its picture is made small or large."""
PAINTING = "painting"
"""SepME's prompt of the anchor, and what it puts behind the concept's words."""
SCHEDULERS: dict[str, SchedulerName] = {"diffusers": "dpm++", "compvis": "ddim", "sepme": "lms"}
"""What draws the pictures."""


def masked(predicted: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """The masked mean of squares, a scalar; ``mask`` is ``[batch, 1, height, width]``."""
    squares = (predicted - target).square() * mask
    return (squares.sum((1, 2, 3)) / mask.sum((1, 2, 3))).mean()


class ShownPicture(NamedTuple):
    """A picture that a batch shows: the how-manieth of which concept's."""

    concept: Concept
    number: int


class ShownExample(NamedTuple):
    """A picture as it is shown, and the prompt that the student gets."""

    colours: Tensor
    """``[height, width, 3]`` in 0..255."""
    mask: Tensor
    """``[latent height, latent width]``, 1 where there is a picture."""
    prompt: str


@dataclass(frozen=True)
class AcProgram:
    """One of the released programs with the settings of one run, which the method explains."""

    variant: Variant
    loss_type: LossType
    prior_weight: float
    prompts: tuple[str, ...]
    memorized: bool
    batch_size: int
    images: int
    pictures: Mapping[str, Pictures] | None
    num_inference_steps: int
    guidance_scale: float
    augment: bool
    hflip: bool

    # --- what it minimises

    def loss(self, student: Student, batch: Batch) -> dict[str, Tensor]:
        """``ablation``, the distance of the target from its anchor, plus the weighted ``prior``.

        ``batch`` has ``latents`` (noised), ``timestep`` and ``condition``, first those of the
        targets, then those of the prior, if any; ``anchor``, a condition for each target; and,
        but for SepME, what is to be predicted (``regressed``) and ``mask``, one for each latent.
        """
        ours, target = self.predictions(student, batch)
        count = len(target)
        if self.variant == "sepme":
            ablation, prior = (
                (part - target).square().mean() for part in (ours[:count], ours[count:])
            )
        else:
            noise, mask = batch["regressed"], batch["mask"]
            ablation = masked(ours[:count], target, mask[:count])
            if len(ours) == count:
                return {"loss": ablation}
            if self.variant == "compvis":
                prior = masked(ours[count:], noise[count:], mask[count:])
            else:
                prior = (ours[count:] - noise[count:]).square().mean()
        return {"loss": ablation + self.prior_weight * prior, "ablation": ablation, "prior": prior}

    def predictions(self, student: Student, batch: Batch) -> tuple[Tensor, Tensor]:
        """The student's predictions, those for the targets first; what those are to become."""
        latents, timestep, condition = batch["latents"], batch["timestep"], batch["condition"]
        anchor, count = batch["anchor"], len(batch["anchor"])
        if self.variant == "sepme":
            target = student.teach(latents, timestep, anchor)
            both = Condition.cat([condition, anchor])
            return student.predict(latents.repeat(2, 1, 1, 1), timestep.repeat(2), both), target
        target = batch["regressed"][:count]
        if self.loss_type == "model-based":
            with torch.no_grad():
                target = student.predict(latents[:count], timestep[:count], anchor)
        return predict_start_detached(student, latents, timestep, condition), target

    # --- what it trains on

    def batches(self, run: Run, numbers: Iterable[int]) -> Iterator[Batch]:
        """Pictures, each with a prompt of its anchor and of its target, then those of the prior.

        They are drawn when a batch needs them, so that none is drawn in vain.
        """
        own = {
            concept.target: pictures_of(run.model, self.pictures, self._words(concept))
            for concept in run.policy.erase
            if self.pictures is not None
        }
        for number in numbers:
            draws = generator(run.seed, "ac", number)
            turns = range(number * self.batch_size, (number + 1) * self.batch_size)
            shown = [self._turn(run, own, turn) for turn in turns]
            if self.prior_weight and self.variant != "sepme":
                shown += [
                    ShownPicture(one.concept, integer(draws, 0, self._count(own, one.concept)))
                    for one in shown
                ]
            pictures = [own[one.concept.target][one.number] for one in shown if own]
            pictures = [
                ImageOps.mirror(picture) if self.hflip and integer(draws, 0, 2) else picture
                for picture in pictures or self._drawn_pictures(run, shown)
            ]
            yield self._batch(run, shown, pictures, draws)

    def _turn(self, run: Run, own: Mapping[str, Pictures], turn: int) -> ShownPicture:
        """Concepts take turns, and show all their pictures before they show one again."""
        round_, which = divmod(turn, len(run.policy.erase))
        concept = run.policy.erase[which]
        count = self._count(own, concept)
        epoch, at = divmod(round_, count)
        order = torch.randperm(count, generator=generator(run.seed, "ac order", which, epoch))
        return ShownPicture(concept, int(order[at]))

    def _count(self, own: Mapping[str, Pictures], concept: Concept) -> int:
        """How many pictures there are."""
        return len(own[concept.target]) if own else self.images

    def _batch(
        self, run: Run, shown: list[ShownPicture], pictures: Pictures, draws: torch.Generator
    ) -> Batch:
        model, count = run.model, self.batch_size
        rows = list(zip(pictures, shown, strict=True))
        examples = [self._example(model, *row, draws) for row in rows[:count]]
        examples += [_plain(model, picture, self._prompt(one)) for picture, one in rows[count:]]
        mean, deviation = latents_of(model, torch.stack([one.colours for one in examples]))
        wobble, noise = torch.randn((2, *mean.shape), generator=draws).to(model.device)
        latents = mean + wobble * deviation
        process = model.process
        timestep = torch.randint(process.times, (len(shown),), generator=draws).to(model.device)
        anchors = [self._prompt(one) for one in shown[:count]]
        if self.variant == "sepme":
            anchors = [PAINTING] * count
        return {
            "latents": process.mix(latents, noise, timestep),
            "timestep": timestep,
            "condition": model.condition([one.prompt for one in examples]),
            "anchor": model.condition(anchors),
            "regressed": process.target(latents, noise, timestep),
            "mask": torch.stack([one.mask for one in examples])[:, None].to(model.device),
        }

    def _example(
        self, model: Model, picture: Image.Image, shown: ShownPicture, draws: torch.Generator
    ) -> ShownExample:
        """A picture of the anchor at some scale, with the target's prompt."""
        concept, size = shown.concept, picture.height
        if self.variant == "sepme":
            return _plain(model, picture, f"{concept.target} {PAINTING}")
        options = target_prompts(
            self._prompt(shown),
            concept,
            concept.target,
            style=STYLE[self.variant],
            memorized=self.memorized,
        )
        prompt = options[integer(draws, 0, len(options))]
        scale = self._scale(concept, size, draws)
        if 0.6 * size <= scale <= size and self.variant == "compvis":
            return _plain(model, picture, prompt)
        if scale < 0.6 * size or scale > size:
            prompt = (SMALL if scale < size else LARGE)[integer(draws, 0, 2)] + prompt
        cell = size // model.latent_shape[1]
        return ShownExample(*placed(picture, scale, cell, draws), prompt)

    def _scale(self, concept: Concept, size: int, draws: torch.Generator) -> int:
        """A height in pixels: two times in three less than the own, else more."""
        if not self.augment or (self.variant == "compvis" and concept.kind == "style"):
            return size
        share = 0.66 if self.variant == "diffusers" else 2 / 3
        smaller = float(torch.rand((), generator=draws)) < share
        low, high = (size // 3, size + 1) if smaller else (int(1.2 * size), int(1.4 * size))
        return integer(draws, low, high)

    def _words(self, concept: Concept) -> str:
        """What its pictures show."""
        return concept.target if self.variant == "sepme" else concept.replacement

    def _prompt(self, shown: ShownPicture) -> str:
        """What a picture is drawn from."""
        if self.variant == "sepme":
            return shown.concept.target
        concept = shown.concept
        own = [sentence.format(concept.replacement) for sentence in TEMPLATES[concept.kind]]
        prompts = anchor_prompts(self.prompts or own, concept, memorized=self.memorized)
        return prompts[shown.number % len(prompts)]

    def _drawn_pictures(self, run: Run, shown: list[ShownPicture]) -> Pictures:
        """What the model draws."""
        requests = [
            ImageRequest(
                case_number=str(one.number),
                prompt=self._prompt(one),
                seed=derive(run.seed, "ac picture", self._prompt(one), one.number),
            )
            for one in shown
        ]
        sampler = Sampler(
            scheduler=SCHEDULERS[self.variant],
            steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
        )
        drawn = sample(run.model, requests, sampler)
        return [Image.fromarray(colours.numpy()) for _, colours in drawn]


def _plain(model: Model, picture: Image.Image, prompt: str) -> ShownExample:
    """A picture as it is."""
    return ShownExample(
        picture_bytes([picture])[0].float(), torch.ones(model.latent_shape[1:]), prompt
    )


def placed(
    picture: Image.Image, scale: int, cell: int, draws: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A picture at another scale: a part of it if that is larger, else all of it on grey.

    The mask leaves out a cell at each border of a picture on grey, even if that fills everything.

    Args:
        picture: of the model's size.
        scale: its new height in pixels.
        cell: pixels of a latent's side.
        draws: where the part or the picture is.

    Returns:
        Colours ``[height, width, 3]`` in 0..255, and the mask ``[height/cell, width/cell]``.
    """
    width, height = picture.size
    size = (scale, scale * width // height)
    colours = picture_bytes([picture.resize(size[::-1], Image.Resampling.BILINEAR)])[0].float()
    corner = [integer(draws, 0, abs(a - b) + 1) for a, b in zip(size, (height, width), strict=True)]
    top, left = corner
    if scale > height:
        part = colours[top : top + height, left : left + width]
        return part, torch.ones(height // cell, width // cell)
    ground = torch.full((height, width, 3), 127.5)
    ground[top : top + size[0], left : left + size[1]] = colours
    mask = torch.zeros(height // cell, width // cell)
    for border in (1, 0):  # of few cells none would be left
        if not mask.any():
            rows, columns = (
                slice(start // cell + border, (start + length) // cell - border)
                for start, length in zip(corner, size, strict=True)
            )
            mask[rows, columns] = 1
    return ground, mask
