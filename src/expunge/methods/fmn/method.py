"""Forget-Me-Not: Learning to Forget in Text-to-Image Diffusion Models (Zhang et al., 2023).

On pictures of the concept, noised to a timestep, the UNet learns not to look at the concept's
words. With the attention ``A_l`` (softmax over the prompt's tokens) of every cross-attention
``l``, every head and every pixel, and the columns ``S`` of the words and of the end of the text::

    L = | concat_l A_l[..., S] |_F

The noise prediction itself plays no part.

``corrected`` is the default: any number of pictures, prompts and concepts in a step, and what is
to be kept stays. ``original`` is the released program (``variant="released"``), quirks and all,
or what SepME's repository calls Forget-Me-Not (``variant="sepme"``): no softmax, but the
distance of the logits of ``a painting of C`` from those of ``a painting of``, for one query ``Q``::

    L = sum_l mean((s Q_l (K_l(c) - K_l(g))^T)^2)
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from expunge.concepts import Concept, Context
from expunge.method.base import Fixed
from expunge.method.batch import Batch
from expunge.method.run import Run
from expunge.method.student import Student
from expunge.method.training import TrainedWeights
from expunge.methods.fmn.batches import Pooler, ShownConcept, columns, row
from expunge.models import Condition, Model
from expunge.models.attention import Look
from expunge.pictures import PicturesSetting, latents_of, picture_bytes, pictures_of
from expunge.prior import mean_moment
from expunge.seeding import derive
from expunge.training.inversion import inverted
from expunge.training.trajectories import trajectories

ROLES = {"x": "cross_attention", "x-strict": "cross_attention.kv", "full": "all"}
"""What is trained, by ``train_method``."""

RELEASED = {"style": "a photo in the style of {}", "": "a photo of {}"}
"""The released program's sentence, by kind."""

PAINTING = "a painting of"
"""SepME's sentence, without the words."""

DEFAULTS: dict[str, dict[str, Any]] = {
    "released": {
        "train_method": "full",
        "pooler": "all",
        "lr": 2e-6,
        "weight_decay": 0.01,
    },
    "sepme": {
        "iterations": 21,
        "lr": 1e-5,
        "optimizer": "torch.optim.Adam",
        "max_grad_norm": None,
        "gradients": "cumulative",
    },
}
"""What a released program does when nothing is said, where that isn't this class's default."""


class ForgetMeNot(TrainedWeights):
    """Fine-tuning that takes the cross-attention off the concept's words."""

    name: ClassVar[str] = "fmn"
    title: ClassVar[str] = "Forget-Me-Not"
    year: ClassVar[int] = 2023
    url: ClassVar[str] = "https://arxiv.org/abs/2303.17591"
    released_fixed: ClassVar[Fixed] = {
        **TrainedWeights.released_fixed,
        "batch_size": (1, "the released programs are right for one picture only"),
    }
    corrected_only: ClassVar[tuple[str, ...]] = (
        "contexts",
        "preserve_scale",
        "inversion_steps",
        "inversion_lr",
    )
    original_only: ClassVar[tuple[str, ...]] = ("variant",)

    variant: Literal["released", "sepme"] | None = None
    """The program to follow; only with ``fidelity="original"``."""
    train_method: Literal["x", "x-strict", "full"] = "x"
    """``x`` the cross-attention, ``x-strict`` its keys and values, ``full`` the whole UNet."""
    pooler: Pooler = "first"
    """Which ends of the text count as the concept: none, the first, or all (the padding too, where
    the tokenizer pads with the end of the text, as in Stable Diffusion 1.x)."""
    iterations: int = Field(35, ge=1)
    """Optimiser steps."""
    lr: float = Field(2e-6, gt=0)
    """Learning rate."""
    max_grad_norm: float | None = Field(1.0, gt=0)
    """Longer gradients are cut to this length."""
    batch_size: int = Field(4, ge=1)
    """Noised pictures in one step; concepts take turns."""
    contexts: tuple[Context, ...] = ()
    """Sentences with ``{}`` for the concept; by default the words alone and the templates."""
    pictures: PicturesSetting | None = None
    """Own training pictures: a folder with one folder a concept; by default the model draws."""
    images: int = Field(8, ge=1)
    """Pictures to draw of each concept."""
    num_inference_steps: int = Field(30, ge=2, le=1000)
    """Denoising steps of these pictures."""
    guidance_scale: float = Field(7.5, ge=1)
    """Guidance of these pictures."""
    no_real_image: bool = False
    """Train on pure noise instead of pictures."""
    preserve_scale: float = Field(1.0, ge=0)
    """Weight of the relative change of the keys and values of the prompts to keep."""
    inversion_steps: int = Field(0, ge=0)
    """Steps of a textual inversion of each concept's pictures, whose result is erased like a
    synonym; 500 in the paper, which takes longer than all the rest."""
    inversion_lr: float = Field(1e-3, gt=0)
    """Learning rate of the textual inversion."""

    @classmethod
    def with_released(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """An original run starts from its program's defaults."""
        variant = values.get("variant") or "released"
        values = {**DEFAULTS.get(variant, {}), **values, "variant": variant}
        if variant == "released" and values["train_method"] == "full":
            values = {"max_grad_norm": None, **values}
        return super().with_released(values)

    @model_validator(mode="after")
    def _consistent(self) -> "ForgetMeNot":
        if self.gradient_checkpointing:
            raise ValueError(
                "gradient_checkpointing: attention is read while the UNet runs, which can't be run "
                "again for it; a smaller batch_size saves memory too"
            )
        if self.no_real_image and self.pictures:
            raise ValueError("no_real_image: trains on no picture; leave pictures away")
        if self.no_real_image and self.inversion_steps:
            raise ValueError("inversion_steps: there is no picture to invert; drop no_real_image")
        if self.variant is None:
            return self
        sepme = self.variant == "sepme"
        if sepme:
            self.refuse_changed('not with variant="sepme"', "pooler", "no_real_image")
        if self.train_method not in (("x",) if sepme else ("x", "full")):
            raise ValueError(f'train_method: not {self.train_method} with variant="{self.variant}"')
        if not sepme and self.train_method == "full" and self.max_grad_norm:
            raise ValueError(
                "max_grad_norm: the released program cuts no gradient of the whole UNet, whatever "
                "is set; leave it away, or take train_method x"
            )
        return self

    def parameters(self, model: Model) -> tuple[str, ...]:
        return model.select(ROLES[self.train_method])

    # --- what it trains on

    def batches(self, run: Run, numbers: Iterable[int]) -> Iterator[Batch]:
        pictures = self._pictures(run)
        shown = [
            self._shown(run, concept, *latents)
            for concept, latents in zip(run.policy.erase, pictures, strict=True)
        ]
        constant: Batch = self._kept_words(run)
        if self.variant == "sepme":
            constant = {"generic": run.model.encode([PAINTING])}
        for number in numbers:
            turns = range(number * self.batch_size, (number + 1) * self.batch_size)
            rows = [row(run, shown, turn) for turn in turns]
            condition = Condition.cat([row.pop("condition") for row in rows])
            batch = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
            noise = batch.pop("noise")
            latents = run.model.process.mix(batch["latents"], noise, batch["timestep"])
            yield {**batch, **constant, "latents": latents, "condition": condition}

    def prompts(self, concept: Concept) -> list[tuple[str, str]]:
        """Every prompt that names the concept, and the words it does so with."""
        if self.variant:
            sentence = RELEASED.get(concept.kind, RELEASED[""])
            sentence = f"{PAINTING} {{}}" if self.variant == "sepme" else sentence
            return [(sentence.format(concept.target), concept.target)]
        sentences = concept.sentences(self.contexts)
        return [(s.format(words), words) for words in concept.phrases for s in sentences]

    def _shown(self, run: Run, concept: Concept, mean: Tensor, deviation: Tensor) -> ShownConcept:
        prompts = self.prompts(concept)
        condition = run.model.condition([prompt for prompt, _ in prompts])
        if self.inversion_steps:
            own = [(prompt, words) for prompt, words in prompts if words == concept.target]
            inversion = inverted(
                run.model,
                [prompt for prompt, _ in own],
                concept.target,
                mean,
                deviation,
                steps=self.inversion_steps,
                lr=self.inversion_lr,
                seed=run.seed,
            )
            prompts, condition = prompts + own, Condition.cat([condition, inversion])
        marks = torch.stack([columns(run.model, *pair, self.pooler) for pair in prompts])
        return ShownConcept(mean, deviation, condition, marks.to(run.model.device))

    def _pictures(self, run: Run) -> list[tuple[Tensor, Tensor]]:
        """Mean and deviation of the latents of each concept's pictures, ``[pictures, c, h, w]``."""
        concepts = run.policy.erase
        if self.no_real_image:
            zero = torch.zeros(1, *run.model.latent_shape, device=run.model.device)
            return [(zero, zero) for _ in concepts]
        if self.pictures is not None:
            given = [pictures_of(run.model, self.pictures, concept.target) for concept in concepts]
            return [latents_of(run.model, picture_bytes(pictures)) for pictures in given]
        return [(latents, torch.zeros_like(latents)) for latents in self._drawn_latents(run)]

    def _drawn_latents(self, run: Run) -> Tensor:
        """What the model draws of all concepts, as latents ``[concepts, pictures, c, h, w]``."""
        prompts, seeds = [], []
        for concept in run.policy.erase:
            own = self.prompts(concept)
            for number in range(self.images):
                prompts.append(own[number % len(own)][0])
                seeds.append(derive(run.seed, "fmn picture", concept.target, number))
        drawn = trajectories(
            run,
            "pictures",
            prompts,
            seeds,
            steps=self.num_inference_steps,
            # The last step starts at timestep 1, where next to no noise is left.
            keep=[self.num_inference_steps - 1],
            guidance_scale=self.guidance_scale,
            latents_only=True,
        )
        shape = (len(run.policy.erase), self.images, *run.model.latent_shape)
        return drawn.latents.reshape(shape).float().to(run.model.device)

    def _kept_words(self, run: Run) -> dict[str, Tensor]:
        """The Gram matrix of the embeddings to keep, ``[width, width]``, if there are any."""
        wanted = self.preserve_scale and self.variant is None
        prompts = run.policy.kept_prompts(self.contexts) if wanted else ()
        if not prompts:
            return {}
        return {"kept_words": mean_moment(run.model, prompts)}

    # --- what it minimises

    def loss(self, student: Student, batch: Batch) -> dict[str, Tensor]:
        """The attention on the concept's columns, the mean over the batch.

        With prompts to keep, also ``preserve_scale`` times how far their keys and values moved.
        """
        if self.variant == "sepme":
            return {"loss": logit_distances(student, batch).sum()}
        attention = attention_norms(student, batch).mean()
        if "kept_words" not in batch:
            return {"loss": attention}
        moved = student.projection_change(batch["kept_words"])
        return {
            "loss": attention + self.preserve_scale * moved,
            "attention": attention,
            "kept_change": moved,
        }


def attention_norms(student: Student, batch: Batch) -> Tensor:
    """``| concat_l A_l[..., S] |_F`` of every sample, ``[batch]``; has gradients.

    ``batch`` has ``latents`` (noised), ``timestep``, ``condition`` and ``columns``, the ``S`` of
    each sample, ``[batch, tokens]`` bool.
    """
    used = batch["columns"].any(0).nonzero()[:, 0]
    marks = batch["columns"][:, None, None, used]

    def squares(look: Look) -> Tensor:
        seen: Tensor = look.attention[..., used].float() * marks
        return seen.square().sum((1, 2, 3))

    with student.model.attention_read(squares) as layers:
        student.predict(batch["latents"], batch["timestep"], batch["condition"])
    return torch.stack(list(layers.values())).sum(0).sqrt()


def logit_distances(student: Student, batch: Batch) -> Tensor:
    """``mean((s Q_l (K_l(c) - K_l(g))^T)^2)`` of every layer, ``[layers]``; has gradients.

    ``batch`` has ``latents`` (noised), ``timestep``, ``condition`` (c) and ``generic``, the rows of
    g, ``[1, tokens, width]``. The queries are those of the pass with ``c``.
    """
    generic = batch["generic"].to(student.model.dtype).expand_as(batch["condition"].rows)

    def mean_square(look: Look) -> Tensor:
        keys = look.keys - look.keys_of(generic)
        logits: Tensor = look.scale * (look.queries @ keys.mT)
        return logits.float().square().mean()

    with student.model.attention_read(mean_square) as layers:
        student.predict(batch["latents"], batch["timestep"], batch["condition"])
    return torch.stack(list(layers.values()))
