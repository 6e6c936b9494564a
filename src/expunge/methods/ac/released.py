"""The released Ablating Concepts programs: what each of them shows and compares.

    variant     pictures of   teacher                the anchor's own loss compares with
    diffusers   the anchor    the current student    the noise, by a plain mean
    compvis     the anchor    the current student    the noise, by a masked mean
    sepme       the target    the frozen model       the frozen model, with a weight of 10

A masked mean divides the sum over all channels by the size of a one-channel mask. With four
channels, it is four times a plain mean.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from PIL import Image, ImageOps
from torch import Tensor

from expunge.concepts import TEMPLATES, Concept
from expunge.generation.sampler import Sampler, SchedulerName
from expunge.generation.sampling import ImageRequest, sample
from expunge.method.batch import Batch
from expunge.method.run import Run
from expunge.method.student import Student
from expunge.methods.ac.placing import ShownExample, placed, plain
from expunge.methods.ac.prompts import (
    PREFIX,
    SUFFIX,
    anchor_prompts,
    predict_start_detached,
    target_prompts,
)
from expunge.methods.ac.variants import AcVariant, LossType
from expunge.methods.turns import picture_in_turn
from expunge.models import Condition, Model
from expunge.pictures import Pictures, latents_of, pictures_of
from expunge.seeding import derive, generator, integer
from expunge.sentences import fill

STYLE: dict[str, tuple[str, ...]] = {
    "diffusers": (SUFFIX, PREFIX, PREFIX),
    "compvis": tuple(
        form.replace("{words}", words)
        for form in (SUFFIX, "{words} inspired painting, {prompt}", PREFIX)
        for words in ("{words}", "{words} {words}")
    ),
}
"""Where a style's words go in a prompt; one of these is chosen at random."""
SMALL, LARGE = ("a far away ", "very small "), ("zoomed in ", "close up ")
"""What precedes the target's prompt when its picture is made smaller or larger."""
PAINTING = "painting"
"""SepME's prompt for the anchor; it also follows the concept's words."""
SCHEDULERS: dict[str, SchedulerName] = {"diffusers": "dpm++", "compvis": "ddim", "sepme": "lms"}
"""The scheduler that each program draws its pictures with."""


def masked(predicted: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """The masked mean of squares, a scalar; ``mask`` is ``[batch, 1, height, width]``."""
    squares = (predicted - target).square() * mask
    return (squares.sum((1, 2, 3)) / mask.sum((1, 2, 3))).mean()


class ShownPicture(NamedTuple):
    """A picture that a batch shows: a concept, and the number of one of its pictures."""

    concept: Concept
    number: int


@dataclass(frozen=True)
class AcProgram:
    """One of the released programs with the settings of a run; see ``AblatingConcepts``."""

    variant: AcVariant
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

        ``batch`` has ``latents`` (noised), ``timestep`` and ``condition``, those of the targets
        before those of the prior, if any. ``anchor`` is a condition for each target. Except for
        SepME, ``regressed`` (what is to be predicted) and ``mask`` have one row for each latent.
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
        """The student's predictions, those for the targets first, and what the latter should be."""
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

        A picture is drawn only when a batch needs it.
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
        concepts = run.policy.erase
        counts = [self._count(own, concept) for concept in concepts]
        which, number = picture_in_turn(run.seed, "ac order", counts, turn)
        return ShownPicture(concepts[which], number)

    def _count(self, own: Mapping[str, Pictures], concept: Concept) -> int:
        """The number of pictures of a concept."""
        return len(own[concept.target]) if own else self.images

    def _batch(
        self, run: Run, shown: list[ShownPicture], pictures: Pictures, draws: torch.Generator
    ) -> Batch:
        model, count = run.model, self.batch_size
        rows = list(zip(pictures, shown, strict=True))
        examples = [self._example(model, *row, draws) for row in rows[:count]]
        examples += [plain(model, picture, self._prompt(one)) for picture, one in rows[count:]]
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
            return plain(model, picture, f"{concept.target} {PAINTING}")
        options = target_prompts(
            self._prompt(shown),
            concept,
            concept.target,
            style=STYLE[self.variant],
            memorized=self.memorized,
            parts=True,
        )
        prompt = options[integer(draws, 0, len(options))]
        scale = self._scale(concept, size, draws)
        if 0.6 * size <= scale <= size and self.variant == "compvis":
            return plain(model, picture, prompt)
        if scale < 0.6 * size or scale > size:
            prompt = (SMALL if scale < size else LARGE)[integer(draws, 0, 2)] + prompt
        cell = size // model.latent_shape[1]
        return ShownExample(*placed(picture, scale, cell, draws), prompt)

    def _scale(self, concept: Concept, size: int, draws: torch.Generator) -> int:
        """A height in pixels: in two of three cases smaller than the picture's own, else larger."""
        if not self.augment or (self.variant == "compvis" and concept.kind == "style"):
            return size
        share = 0.66 if self.variant == "diffusers" else 2 / 3
        smaller = float(torch.rand((), generator=draws)) < share
        low, high = (size // 3, size + 1) if smaller else (int(1.2 * size), int(1.4 * size))
        return integer(draws, low, high)

    def _words(self, concept: Concept) -> str:
        """The words for what a concept's pictures show."""
        return concept.target if self.variant == "sepme" else concept.replacement

    def _prompt(self, shown: ShownPicture) -> str:
        """The prompt that a picture is drawn from."""
        if self.variant == "sepme":
            return shown.concept.target
        concept = shown.concept
        own = [fill(sentence, concept.replacement) for sentence in TEMPLATES[concept.kind]]
        prompts = anchor_prompts(self.prompts or own, concept, memorized=self.memorized, parts=True)
        return prompts[shown.number % len(prompts)]

    def _drawn_pictures(self, run: Run, shown: list[ShownPicture]) -> Pictures:
        """Pictures that the model draws."""
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
