"""Forget-Me-Not: Learning to Forget in Text-to-Image Diffusion Models (Zhang et al., 2023).

On pictures of the concept, noised to a timestep, the UNet learns not to look at the concept's
words. ``A_l`` is the attention of a cross-attention layer ``l`` (softmax over the prompt's tokens),
for every head and pixel. ``S`` are the columns of the words and of the end of the text::

    L = | concat_l A_l[..., S] |_F

The noise prediction itself isn't used.

``corrected``, the default, takes any number of pictures, prompts and concepts in a step, and holds
what is to be kept. ``original`` is the released program (``variant="released"``), quirks included,
or the one that SepME's repository calls Forget-Me-Not (``variant="sepme"``). The latter has no
softmax. With the same queries ``Q``, it minimises the distance of the logits of ``a painting of C``
from those of ``a painting of``::

    L = sum_l mean((s Q_l (K_l(c) - K_l(g))^T)^2)
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from expunge.concepts import Concept, Context, Policy
from expunge.method.base import Fixed, PolicyPart
from expunge.method.batch import Batch
from expunge.method.run import Run
from expunge.method.student import Student
from expunge.method.training import TrainedWeights
from expunge.methods.fmn.batches import Pooler, ShownConcept, columns, row
from expunge.methods.fmn.losses import attention_norms, logit_distances
from expunge.methods.kept import KeepsEveryday, KeepsPrior
from expunge.models import Condition, Model
from expunge.pictures import PicturesSetting, latents_of, picture_bytes, pictures_of
from expunge.prior import PriorSetting
from expunge.seeding import derive
from expunge.sentences import fill
from expunge.training.inversion import inverted
from expunge.training.trajectories import trajectories

ROLES = {"x": "cross_attention", "x-strict": "cross_attention.kv", "full": "all"}
"""The parameters that each ``train_method`` trains."""

RELEASED = {"style": "a photo in the style of {}", "": "a photo of {}"}
"""The released program's sentence for each kind."""

PAINTING = "a painting of"
"""SepME's sentence, before the words."""

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
"""Defaults of the released programs, where they differ from the method's."""


class ForgetMeNot(KeepsEveryday, KeepsPrior, TrainedWeights):
    """Fine-tuning that turns the cross-attention away from the concept's words."""

    name: ClassVar[str] = "fmn"
    title: ClassVar[str] = "Forget-Me-Not"
    year: ClassVar[int] = 2023
    url: ClassVar[str] = "https://arxiv.org/abs/2303.17591"
    released_fixed: ClassVar[Fixed] = {
        **TrainedWeights.released_fixed,
        "batch_size": (1, "the released programs work for one picture only"),
    }
    corrected_only: ClassVar[tuple[str, ...]] = (
        "contexts",
        "preserve_scale",
        "inversion_steps",
        "inversion_lr",
    )
    always_ignored: ClassVar[frozenset[PolicyPart]] = frozenset({"anchor"})
    released_ignored: ClassVar[frozenset[PolicyPart]] = frozenset({"keep"})
    original_only: ClassVar[tuple[str, ...]] = ("variant",)

    variant: Literal["released", "sepme"] | None = None
    """The released program to follow; needs ``fidelity="original"``."""
    train_method: Literal["x", "x-strict", "full"] = "x"
    """What is trained: the cross-attention (``x``), only its keys and values (``x-strict``), or the
    whole UNet (``full``)."""
    pooler: Pooler = "first"
    """Which end-of-text tokens count as part of the concept: none, the first, or all. All includes
    the padding where the tokenizer pads with that token, as in Stable Diffusion 1."""
    iterations: int = Field(35, ge=1)
    """Optimiser steps."""
    lr: float = Field(2e-6, gt=0)
    """Learning rate."""
    max_grad_norm: float | None = Field(1.0, gt=0)
    """Gradients with a larger norm are scaled down to this norm."""
    batch_size: int = Field(4, ge=1)
    """Noised pictures in one step; concepts take turns."""
    contexts: tuple[Context, ...] = ()
    """Sentences with ``{}`` for the words. Default: the words alone and the templates."""
    pictures: PicturesSetting | None = None
    """Your own pictures: a folder with one folder for each concept. Default: the model draws
    them."""
    images: int = Field(8, ge=1)
    """Number of pictures to draw of each concept."""
    num_inference_steps: int = Field(30, ge=2, le=1000)
    """Denoising steps of these pictures."""
    guidance_scale: float = Field(7.5, ge=1)
    """Guidance scale of these pictures."""
    no_real_image: bool = False
    """Train on pure noise instead of pictures."""
    everyday: int = Field(0, ge=0)
    """How many everyday prompts stay where nothing to keep is named: a random choice, without those
    that name what is erased. 0: none."""
    prior: PriorSetting = None
    """Ordinary prompts whose keys and values stay too, with the weight of those that are named:
    ``default`` for everyday ones, ``none``, or a file written by ``expunge prior``."""
    preserve_scale: float = Field(1.0, ge=0)
    """Weight of how far the keys and values of the prompts to keep have moved, relative to their
    size."""
    inversion_steps: int = Field(0, ge=0)
    """Steps of a textual inversion of each concept's pictures; the result is erased like a synonym.
    The paper takes 500, which takes longer than everything else."""
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
                "gradient_checkpointing: attention is read while the UNet runs, so the UNet can't "
                "run again for it; a smaller batch_size saves memory too"
            )
        if self.no_real_image and self.pictures:
            raise ValueError("no_real_image: trains on no picture; leave pictures out")
        if self.no_real_image and self.inversion_steps:
            raise ValueError(
                "inversion_steps: there is no picture to invert; leave no_real_image out"
            )
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
                "is set; leave it out, or use train_method x"
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
        constant: Batch = {}
        if self.variant is None:
            stays = self.stays(run.policy, self.contexts, run.seed)
            constant = self.kept_words(run.model, run.policy, stays, self.preserve_scale)
        elif self.variant == "sepme":
            constant = {"generic": run.model.encode([PAINTING])}
        for number in numbers:
            turns = range(number * self.batch_size, (number + 1) * self.batch_size)
            rows = [row(run, shown, turn) for turn in turns]
            condition = Condition.cat([row.pop("condition") for row in rows])
            batch = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
            noise = batch.pop("noise")
            latents = run.model.process.mix(batch["latents"], noise, batch["timestep"])
            yield {**batch, **constant, "latents": latents, "condition": condition}

    def erased_prompts(self, policy: Policy) -> list[str]:
        return [prompt for concept in policy.erase for prompt, _ in self.prompts(concept)]

    def prompts(self, concept: Concept) -> list[tuple[str, str]]:
        """Every prompt that names the concept, with the words that name it."""
        if self.variant:
            sentence = RELEASED.get(concept.kind, RELEASED[""])
            sentence = f"{PAINTING} {{}}" if self.variant == "sepme" else sentence
            return [(fill(sentence, concept.target), concept.target)]
        sentences = concept.sentences(self.contexts)
        return [(fill(s, words), words) for words in concept.phrases for s in sentences]

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
        """Mean and deviation of each concept's latents, ``[pictures, c, h, w]``."""
        concepts = run.policy.erase
        if self.no_real_image:
            zero = torch.zeros(1, *run.model.latent_shape, device=run.model.device)
            return [(zero, zero) for _ in concepts]
        if self.pictures is not None:
            given = [pictures_of(run.model, self.pictures, concept.target) for concept in concepts]
            return [latents_of(run.model, picture_bytes(pictures)) for pictures in given]
        return [(latents, torch.zeros_like(latents)) for latents in self._drawn_latents(run)]

    def _drawn_latents(self, run: Run) -> Tensor:
        """Latents of pictures that the model draws, ``[concepts, pictures, c, h, w]``."""
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
            # The last step starts at timestep 1, where almost no noise is left.
            keep=[self.num_inference_steps - 1],
            guidance_scale=self.guidance_scale,
            latents_only=True,
        )
        shape = (len(run.policy.erase), self.images, *run.model.latent_shape)
        return drawn.latents.reshape(shape).float().to(run.model.device)

    # --- what it minimises

    def loss(self, student: Student, batch: Batch) -> dict[str, Tensor]:
        """The attention on the concept's columns, averaged over the batch.

        With prompts to keep, it adds ``preserve_scale`` times how far their keys and values moved.
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
