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

from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import BeforeValidator, Field, StringConstraints, model_validator
from torch import Tensor

from expunge.concepts import Concept, Context
from expunge.method.base import Batch, Trained
from expunge.method.run import Run
from expunge.method.student import Student
from expunge.methods.ac.album import Album, Drawing, collected
from expunge.methods.ac.prompts import anchored, asked, predict, regressed
from expunge.methods.ac.released import DEFAULTS, RULES, LossType, Program, Variant, attention
from expunge.methods.mace.batches import noised
from expunge.models import Model
from expunge.models.roles import ROLES, Rule, matching
from expunge.pictures import PicturesSetting
from expunge.seeding import generator

GROUPS: dict[str, Rule] = {
    "cross-attn": ROLES["cross_attention.kv"],
    "attn": attention,
    "full-weight": ROLES["all"],
}
"""What the corrected method trains."""


def _lines(value: Any) -> Any:
    """The lines of a text file, if that is what is given."""
    if not isinstance(value, str | Path):
        return value
    try:
        text = Path(value).read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{value}: can't read the prompts: {error.strerror}") from None
    return [line for line in text.splitlines() if line.strip()]


Prompt = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Prompts = Annotated[tuple[Prompt, ...], BeforeValidator(_lines)]


class AblatingConcepts(Trained):
    """Fine-tuning that draws an anchor where the target is asked for."""

    name: ClassVar[str] = "ac"
    title: ClassVar[str] = "Ablating Concepts"
    year: ClassVar[int] = 2023
    url: ClassVar[str] = "https://arxiv.org/abs/2303.13516"

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

    @model_validator(mode="before")
    @classmethod
    def _released_defaults(cls, values: Any) -> Any:
        """An original run starts from its program's defaults."""
        if not isinstance(values, dict) or values.get("fidelity") != "original":
            return values
        variant = values.get("variant") or "diffusers"
        return {**DEFAULTS.get(variant, {}), **values, "variant": variant}

    @model_validator(mode="after")
    def _consistent(self) -> "AblatingConcepts":
        if self.parameter_group == "embedding":
            raise ValueError(
                "parameter_group: embedding isn't there; the diffusers program crashes on it, and "
                "an edit changes the UNet, not the text encoder's embeddings"
            )
        known = RULES[self.variant] if self.variant else GROUPS
        if self.parameter_group not in known:
            raise ValueError(f"parameter_group: choose one of {', '.join(known)}")
        if self.prompts and self.contexts:
            raise ValueError("contexts: prompts are given too; give one of the two")
        if self.fidelity == "corrected":
            self._only_default('only with fidelity="original"', "variant", "augment", "hflip")
        else:
            self._only_default('only with fidelity="corrected"', "contexts")
        if self.variant == "sepme":
            names = ("loss_type", "prompts", "memorized", "augment", "hflip")
            self._only_default("SepME's program has no such setting", *names)
        return self

    def _only_default(self, reason: str, *names: str) -> None:
        for name in names:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name}: {reason}")

    @property
    def program(self) -> Program | None:
        """The released program that an original run follows."""
        if self.variant is None:
            return None
        return Program(**{field.name: getattr(self, field.name) for field in fields(Program)})

    def parameters(self, model: Model) -> tuple[str, ...]:
        rules = RULES[self.variant] if self.variant else GROUPS
        return matching(model.unet, rules[self.parameter_group])

    # --- what it minimises

    def loss(self, student: Student, batch: Batch) -> dict[str, Tensor]:
        """``ablation``, mean squared distance of the targets' predictions from what they become.

        With something to keep, also ``prior``, the same for what is kept, times its weight.
        """
        if self.program:
            return self.program.loss(student, batch)
        ours = predict(student, batch["latents"], batch["timestep"], batch["embeddings"])
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
        steps = len(model.pipe.scheduler.alphas_cumprod)
        timestep = torch.randint(steps, (len(rows),), generator=draws).to(model.device)
        noisy = noised(model, latents, noise, timestep)
        target = regressed(model, latents, noise, timestep).clone()
        taught = slice(count if self.loss_type == "noise-based" else 0, None)
        if teacher[taught]:
            embeddings = model.condition(teacher[taught])
            target[taught] = run.student.teach(noisy[taught], timestep[taught], embeddings)
        return {
            "latents": noisy,
            "timestep": timestep,
            "embeddings": model.condition(student),
            "target": target,
            "kept": torch.arange(len(rows), device=model.device) >= count,
        }

    def pairs(self, concept: Concept) -> list[tuple[str, str]]:
        """Each prompt of the anchor with each prompt of the target that goes with it."""
        if not self.prompts and not self.memorized:
            pairs = concept.pairs(self.contexts)
            return [(pair.anchor if concept.replacement else "", pair.erase) for pair in pairs]
        sentences = concept.contexts or self.contexts or ("{}",)
        own = [sentence.format(concept.replacement) for sentence in sentences]
        return [
            (prompt, target)
            for prompt in anchored(self.prompts or own, concept, memorized=self.memorized)
            for words in concept.phrases
            for target in asked(prompt, concept, words, memorized=self.memorized)
        ]
