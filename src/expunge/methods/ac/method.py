"""Ablating Concepts in Text-to-Image Diffusion Models (Kumari et al., ICCV 2023).

On noised pictures ``x_t`` of an anchor c (``cat``), the UNet learns to predict for the target c*
(``grumpy cat``) what it predicts for the anchor::

    model-based    |eps(x_t, c*, t) - eps*(x_t, c, t)|^2
    noise-based    |eps(x_t, c*, t) - e|^2                  with the noise e that made x_t

In ``corrected``, the default, the teacher ``eps*`` is the frozen model, and training uses the
latents that it draws without decoding them. All phrases of all concepts are erased. The anchors
and the prompts to keep are held to the teacher's predictions. ``original`` follows one of the
released programs, quirks included (``released.py``).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, StringConstraints, model_validator
from torch import Tensor

from expunge.concepts import Concept, Context, Policy
from expunge.method.base import PolicyPart
from expunge.method.batch import Batch
from expunge.method.run import Run
from expunge.method.student import Student
from expunge.method.training import TrainedWeights
from expunge.methods.ac.album import Album, Drawing, collected
from expunge.methods.ac.prompts import anchor_prompts, predict_start_detached, target_prompts
from expunge.methods.ac.released import AcProgram
from expunge.methods.ac.variants import DEFAULTS, GROUPS, AcVariant, LossType
from expunge.methods.kept import KeepsEveryday
from expunge.models import Model
from expunge.pictures import PicturesSetting
from expunge.prompts import lists
from expunge.seeding import generator
from expunge.sentences import PLACE, fill
from expunge.settings import or_file

AnchorPrompt = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
AnchorPrompts = Annotated[tuple[AnchorPrompt, ...], or_file(lists.lines)]
"""Prompts, or the path of a file with one on each line."""


class AblatingConcepts(KeepsEveryday, TrainedWeights):
    """Fine-tuning that makes the model draw an anchor when asked for the target."""

    name: ClassVar[str] = "ac"
    title: ClassVar[str] = "Ablating Concepts"
    year: ClassVar[int] = 2023
    url: ClassVar[str] = "https://arxiv.org/abs/2303.13516"
    corrected_only: ClassVar[tuple[str, ...]] = ("contexts",)
    released_ignored: ClassVar[frozenset[PolicyPart]] = frozenset({"keep"})
    original_only: ClassVar[tuple[str, ...]] = ("variant", "augment", "hflip")

    variant: AcVariant | None = None
    """The released program to follow; needs ``fidelity="original"``."""
    loss_type: LossType = "model-based"
    """What the prediction for the target should become: the prediction for the anchor
    (``model-based``), or the noise in the picture (``noise-based``)."""
    parameter_group: str = "cross-attn"
    """What is trained: cross-attn (keys and values), attn or full-weight. With a variant: a name of
    that program."""
    iterations: int = Field(100, ge=1)
    """Optimiser steps."""
    lr: float = Field(1.6e-5, gt=0)
    """Learning rate, used as it is: batch sizes don't scale it."""
    max_grad_norm: float | None = Field(1.0, gt=0)
    """Gradients with a larger norm are scaled down to this norm."""
    batch_size: int = Field(4, ge=1)
    """Pictures with a target's prompt in a batch; as many again hold what stays."""
    accumulation: int = Field(2, ge=1)
    """Batches in one step; several processes share them."""
    prior_weight: float = Field(1.0, ge=0)
    """Weight of holding the anchors and the prompts to keep; 0 leaves it out."""
    prompts: AnchorPrompts = ()
    """Prompts that name the anchor, or a text file of them. Default: the templates."""
    contexts: tuple[Context, ...] = ()
    """Sentences with ``{}`` for the words of the target or its anchor, instead of ``prompts``."""
    memorized: bool = False
    """The target is a memorised picture: its caption alone is its prompt, whatever the anchor's
    prompt is."""
    images: int = Field(64, ge=1)
    """Number of pictures to draw for each concept, and as many again of the prompts to keep, if
    any."""
    num_inference_steps: int = Field(25, ge=2, le=1000)
    """Denoising steps of these pictures."""
    guidance_scale: float = Field(6.0, ge=1)
    """Guidance scale of these pictures."""
    pictures: PicturesSetting | None = None
    """Your own pictures: a folder with one folder for each anchor (sepme: for each target).
    Default: the model draws them."""
    augment: bool = False
    """Also show pictures smaller and larger, as two of the released programs do."""
    hflip: bool = False
    """Mirror half of the pictures at random, as two of the released programs do."""

    @classmethod
    def with_released(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """An original run starts from its program's defaults."""
        variant = values.get("variant") or "diffusers"
        return super().with_released({**DEFAULTS.get(variant, {}), **values, "variant": variant})

    @model_validator(mode="after")
    def _consistent(self) -> "AblatingConcepts":
        if self.parameter_group == "embedding":
            raise ValueError(
                "parameter_group: embedding isn't supported; the released program crashes on it, "
                "and an edit changes the UNet, not the text encoder's embeddings"
            )
        known = GROUPS[self.variant]
        if self.parameter_group not in known:
            raise ValueError(f"parameter_group: choose one of {', '.join(known)}")
        if self.prompts and self.contexts:
            raise ValueError("contexts: prompts are set too; set only one of the two")
        if self.variant == "sepme":
            names = ("loss_type", "prompts", "memorized", "augment", "hflip")
            self.refuse_changed("SepME's program has no such setting", *names)
        return self

    @property
    def ignored(self) -> frozenset[PolicyPart]:
        """SepME's program trains towards one word for all concepts."""
        return super().ignored | ({"anchor"} if self.variant == "sepme" else set())

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
        """``ablation``: mean squared distance of the targets' predictions from their goal.

        If something is kept, ``prior`` is the same for what is kept, and ``loss`` weighs it.
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
        kept = self.stays(run.policy, self.contexts, run.seed) if self.prior_weight else ()
        drawing = Drawing(self.images, self.num_inference_steps, self.guidance_scale)
        album = collected(run, pairs, kept, drawing, self.pictures)
        for number in numbers:
            yield self._batch(run, album, number)

    def _batch(self, run: Run, album: Album, number: int) -> Batch:
        """Noised pictures with the student's prompts and its goal."""
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

    def erased_prompts(self, policy: Policy) -> list[str]:
        if self.fidelity == "original":
            return []
        return [prompt for concept in policy.erase for _, prompt in self.pairs(concept)]

    def pairs(self, concept: Concept) -> list[tuple[str, str]]:
        """Each prompt of the anchor, with each matching prompt of the target."""
        if not self.prompts and not self.memorized:
            return [(anchor, erase) for erase, anchor in concept.neutral_pairs(self.contexts)]
        sentences = concept.contexts or self.contexts or (PLACE,)
        own = [fill(sentence, concept.replacement) for sentence in sentences]
        return [
            (prompt, target)
            for prompt in anchor_prompts(self.prompts or own, concept, memorized=self.memorized)
            for words in concept.phrases
            for target in target_prompts(prompt, concept, words, memorized=self.memorized)
        ]
