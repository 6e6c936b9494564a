"""Ablating Concepts in Text-to-Image Diffusion Models (Kumari et al., ICCV 2023).

On noised pictures ``x_t`` of an anchor c (``cat``), the UNet learns to predict for the target c*
(``grumpy cat``) what the anchor's prompt predicts::

    model-based    |eps(x_t, c*, t) - eps*(x_t, c, t)|^2
    noise-based    |eps(x_t, c*, t) - e|^2                  with the noise e that made x_t

``corrected`` is the default: the teacher ``eps*`` is the frozen model, the pictures stay the
latents that it draws, all phrases of all concepts take part, and what is to be kept, the anchor
itself included, is held to the teacher's predictions. ``original`` is one of the released
programs, quirks and all (``released.py``).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, StringConstraints, model_validator
from torch import Tensor

from expunge.concepts import Concept, Context
from expunge.method.batch import Batch
from expunge.method.run import Run
from expunge.method.student import Student
from expunge.method.training import TrainedWeights
from expunge.methods.ac.album import Album, Drawing, collected
from expunge.methods.ac.prompts import anchor_prompts, predict_start_detached, target_prompts
from expunge.methods.ac.released import DEFAULTS, GROUPS, AcProgram, LossType, Variant
from expunge.models import Model
from expunge.pictures import PicturesSetting
from expunge.prompts import lists
from expunge.seeding import generator
from expunge.settings import or_file

Prompt = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Prompts = Annotated[tuple[Prompt, ...], or_file(lists.lines)]


class AblatingConcepts(TrainedWeights):
    """Fine-tuning that draws an anchor where the target is asked for."""

    name: ClassVar[str] = "ac"
    title: ClassVar[str] = "Ablating Concepts"
    year: ClassVar[int] = 2023
    url: ClassVar[str] = "https://arxiv.org/abs/2303.13516"
    corrected_only: ClassVar[tuple[str, ...]] = ("contexts",)
    original_only: ClassVar[tuple[str, ...]] = ("variant", "augment", "hflip")

    variant: Variant | None = None
    """The released program to follow; only with ``fidelity="original"``."""
    loss_type: LossType = "model-based"
    """What the target's prediction is to become: the anchor's prediction, or the noise."""
    parameter_group: str = "cross-attn"
    """cross-attn (its keys and values), attn or full-weight; a variant's own names with one."""
    iterations: int = Field(100, ge=1)
    """Optimiser steps."""
    lr: float = Field(1.6e-5, gt=0)
    """Learning rate, already scaled by the size of a step's batches."""
    max_grad_norm: float | None = Field(1.0, gt=0)
    """Longer gradients are cut to this length."""
    batch_size: int = Field(4, ge=1)
    """Pictures with a target's prompt in a batch; as many again hold what is to be kept."""
    accumulation: int = Field(2, ge=1)
    """Batches in one step; several processes share them."""
    prior_weight: float = Field(1.0, ge=0)
    """Weight of holding the anchors and what is to be kept; 0 leaves it out."""
    prompts: Prompts = ()
    """Prompts of the anchor, or a text file of them; by default the kind's templates."""
    contexts: tuple[Context, ...] = ()
    """Sentences with ``{}`` for the words of the target or of its anchor, instead of prompts."""
    memorized: bool = False
    """The target is a memorised picture's caption, its prompt whatever the anchor's is."""
    images: int = Field(64, ge=1)
    """Pictures to draw for each concept; as many again of the prompts to keep, if any."""
    num_inference_steps: int = Field(25, ge=2, le=1000)
    """Denoising steps of these pictures."""
    guidance_scale: float = Field(6.0, ge=1)
    """Guidance of these pictures."""
    pictures: PicturesSetting | None = None
    """Own pictures: a folder with one folder an anchor (with sepme: a target)."""
    augment: bool = False
    """Show pictures smaller and larger too, as two of the released programs do."""
    hflip: bool = False
    """Show every second picture mirrored, as two of the released programs do."""

    @classmethod
    def with_released(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """An original run starts from its program's defaults."""
        variant = values.get("variant") or "diffusers"
        return super().with_released({**DEFAULTS.get(variant, {}), **values, "variant": variant})

    @model_validator(mode="after")
    def _consistent(self) -> "AblatingConcepts":
        if self.parameter_group == "embedding":
            raise ValueError(
                "parameter_group: embedding isn't there; the diffusers program crashes on it, and "
                "an edit changes the UNet, not the text encoder's embeddings"
            )
        known = GROUPS[self.variant]
        if self.parameter_group not in known:
            raise ValueError(f"parameter_group: choose one of {', '.join(known)}")
        if self.prompts and self.contexts:
            raise ValueError("contexts: prompts are given too; give one of the two")
        if self.variant == "sepme":
            names = ("loss_type", "prompts", "memorized", "augment", "hflip")
            self.refuse_changed("SepME's program has no such setting", *names)
        return self

    @property
    def program(self) -> AcProgram | None:
        """The released program that an original run follows."""
        if self.variant is None:
            return None
        return AcProgram(**{field.name: getattr(self, field.name) for field in fields(AcProgram)})

    def parameters(self, model: Model) -> tuple[str, ...]:
        return model.select(GROUPS[self.variant][self.parameter_group])

    # --- what it minimises

    def loss(self, student: Student, batch: Batch) -> dict[str, Tensor]:
        """``ablation``, mean squared distance of the targets' predictions from what they become.

        With something to keep, also ``prior``, the same for what is kept, times its weight.
        """
        if self.program:
            return self.program.loss(student, batch)
        ours = predict_start_detached(
            student, batch["latents"], batch["timestep"], batch["condition"]
        )
        distance = (ours - batch["target"]).square().flatten(1).mean(1)
        ablation = distance[~batch["kept"]].mean()
        if not batch["kept"].any():
            return {"loss": ablation}
        prior = distance[batch["kept"]].mean()
        return {"loss": ablation + self.prior_weight * prior, "ablation": ablation, "prior": prior}

    # --- what it trains on

    def batches(self, run: Run, numbers: Iterable[int]) -> Iterator[Batch]:
        if self.program:
            yield from self.program.batches(run, numbers)
            return
        pairs = [self.pairs(concept) for concept in run.policy.erase]
        kept = run.policy.kept_prompts(self.contexts) if self.prior_weight else ()
        drawing = Drawing(self.images, self.num_inference_steps, self.guidance_scale)
        album = collected(run, pairs, kept, drawing, self.pictures)
        for number in numbers:
            yield self._batch(run, album, number)

    def _batch(self, run: Run, album: Album, number: int) -> Batch:
        """Noised pictures with the student's prompts and what it is to predict."""
        model, count, draws = run.model, self.batch_size, generator(run.seed, "ac batch", number)
        rows = [album.target(draws) for _ in range(count)]
        rows += [album.kept(draws) for _ in range(count if self.prior_weight else 0)]
        pictures, teacher, student = (list(column) for column in zip(*rows, strict=True))
        mean, deviation = album.mean[pictures], album.deviation[pictures]
        wobble, noise = torch.randn((2, *mean.shape), generator=draws).to(model.device)
        latents = mean + wobble * deviation
        process = model.process
        timestep = torch.randint(process.times, (len(rows),), generator=draws).to(model.device)
        noisy = process.mix(latents, noise, timestep)
        target = process.target(latents, noise, timestep).clone()
        taught = slice(count if self.loss_type == "noise-based" else 0, None)
        if teacher[taught]:
            condition = model.condition(teacher[taught])
            target[taught] = run.student.teach(noisy[taught], timestep[taught], condition)
        return {
            "latents": noisy,
            "timestep": timestep,
            "condition": model.condition(student),
            "target": target,
            "kept": torch.arange(len(rows), device=model.device) >= count,
        }

    def pairs(self, concept: Concept) -> list[tuple[str, str]]:
        """Each prompt of the anchor with each prompt of the target that goes with it."""
        if not self.prompts and not self.memorized:
            return [(anchor, erase) for erase, anchor in concept.neutral_pairs(self.contexts)]
        sentences = concept.contexts or self.contexts or ("{}",)
        own = [sentence.format(concept.replacement) for sentence in sentences]
        return [
            (prompt, target)
            for prompt in anchor_prompts(self.prompts or own, concept, memorized=self.memorized)
            for words in concept.phrases
            for target in target_prompts(prompt, concept, words, memorized=self.memorized)
        ]
