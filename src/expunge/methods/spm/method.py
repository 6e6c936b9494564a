"""SPM: One-dimensional Adapter to Rule Them All (Lyu et al., CVPR 2024).

Each concept gets a semi-permeable membrane, thin factors ``U_l D_l`` beside every linear layer and
1 x 1 convolution ``l`` of the UNet's transformers. With the frozen noise prediction ``eps`` and
the one through the membrane ``eps_m``, at latents x that the membrane itself has let through::

    L = |eps_m(x, t, c) - (eps(x, t, c0) - eta (eps(x, t, c) - eps(x, t, c0)))|^2
        + lambda mean over anchors a of |eps_m(x, t, a) - eps(x, t, a)|^2

leads the concept c away to the neutral c0 and anchors what else the model draws ("latent
anchoring", eq. 6 to 8). A trained membrane opens as far as a prompt is close to the erased
phrases (``edits/membranes.py``), so that membranes of many concepts, trained apart, work together.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import mse_loss

from expunge.concepts import Concept, Context, Policy, WordList
from expunge.edits.edit import Edit
from expunge.edits.membranes import Metric, Rule
from expunge.errors import ExpungeError, Unsupported
from expunge.method.base import Batch, Part, Trained
from expunge.method.run import Run
from expunge.method.student import Student
from expunge.methods.spm.anchors import Split, acting, noise_anchors
from expunge.methods.spm.student import Acts, Apprentice, distinct
from expunge.models import Model
from expunge.models.sdxl import SDXL
from expunge.seeding import generator
from expunge.training.trajectories import ddim, denoise

ORIGINAL: dict[str, Any] = {
    "iterations": 3000,
    "lr_warmup": 500,
    "batch_size": 1,
    "anchor_split": "released",
    "varied_size": True,
    "rule": "released",
}
"""Defaults of the released program where ours are others."""


class SPM(Trained):
    """Thin membranes that open as far as a prompt asks for what is erased."""

    name: ClassVar[str] = "spm"
    title: ClassVar[str] = "concept Semi-Permeable Membrane"
    year: ClassVar[int] = 2024
    url: ClassVar[str] = "https://arxiv.org/abs/2312.16145"

    negative_guidance: float = Field(1.0, ge=0)
    """eta: how far beyond the neutral prompt."""
    la_strength: float = Field(1000.0, ge=0)
    """lambda: weight of latent anchoring; 0 leaves it out."""
    anchors: int = Field(4, ge=1)
    """Anchors in one step."""
    anchor_split: Split = "all"
    """released: the half of the anchors that the released program loses isn't used."""
    keep_share: float = Field(0.5, ge=0, le=1)
    """Part of the anchors that are prompts, first the empty one, then some to keep; the rest is
    noise."""
    positive: WordList = ()
    """The prompt that leads away, one for each concept or one for all; by default its own."""
    contexts: tuple[Context, ...] = ()
    """Sentences with ``{}`` for the concept; by default the words alone and the templates."""
    start_guidance: float = Field(3.0, ge=1)
    """Guidance scale of the denoising that latents come from."""
    num_inference_steps: int = Field(30, ge=2, le=1000)
    """Steps of a whole denoising."""
    batch_size: int = Field(4, ge=1)
    """Latents in one step, all from one denoising."""
    varied_size: bool = False
    """Train on pictures of 50 to 90 % of the model's height and width, if that is 512 or more."""
    iterations: int = Field(1000, ge=1)
    """Optimiser steps, each for one concept in turn."""
    lr: float = Field(1e-4, gt=0)
    """Learning rate."""
    weight_decay: float = Field(0.01, ge=0)
    """Decay of the factors."""
    lr_schedule: str = "cosine_with_restarts"
    """Name of a schedule of ``diffusers.optimization``, e.g. constant."""
    lr_cycles: int = Field(3, ge=1)
    """Cycles of a schedule that restarts."""
    rank: int = Field(1, ge=1)
    """Rank of a membrane in each layer."""
    alpha: float = Field(1.0, gt=0)
    """``alpha / rank`` scales what a membrane adds."""
    rule: Rule = "paper"
    """How membranes add up: ``sum g U D``, or, released, ``(sum g U)(sum g D)``."""
    metric: Metric = "clipcos_tokenuni"
    """Closeness: cosine of embeddings, share of the phrase's tokens, the larger one, always 1."""
    strength: float = Field(1.0, gt=0)
    """Factor of the closeness ("facilitate_factor")."""

    @model_validator(mode="before")
    @classmethod
    def _released_defaults(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("fidelity") != "original":
            return values
        return {**ORIGINAL, **values}

    @model_validator(mode="after")
    def _trainable(self) -> "SPM":  # in place of the inherited rule: every membrane has a rank
        if self.fidelity == "corrected":
            if self.anchor_split != "all":
                raise ValueError('anchor_split: "released" only with fidelity="original"')
            return self
        for name in ("contexts", "keep_share"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f'{name}: only with fidelity="corrected"')
        if self.batch_size != 1:
            raise ValueError("batch_size: the released program trains on one latent at a time")
        return self

    def parameters(self, model: Model) -> tuple[str, ...]:
        if isinstance(model, SDXL):
            raise Unsupported("spm: not for SDXL so far")
        return model.select("transformers")

    def student(self, model: Model, policy: Policy, seed: int, start: Edit | None) -> Apprentice:
        return Apprentice(
            model,
            self.parameters(model),
            [concept.phrases for concept in policy.erase],
            rank=self.rank,
            alpha=self.alpha,
            seed=seed,
            acts=Acts(self.strength, self.rule, self.metric),
        )

    def parts(self, student: Student, policy: Policy) -> Sequence[Part]:
        """One membrane for each concept."""
        assert isinstance(student, Apprentice)
        return [Part((one,), student.gate(number)) for number, one in enumerate(policy.erase)]

    # --- the loss

    def loss(self, student: Student, batch: Batch) -> dict[str, Tensor]:
        """How much of the concept is left, and ``lambda`` times how far the anchors have moved."""
        assert isinstance(student, Apprentice)
        student.turn = int(batch["turn"])
        seen = self.predictions(student, batch)
        away = seen.neutral - self.negative_guidance * (seen.positive - seen.neutral)
        erase = mse_loss(seen.target, away)
        terms = {"loss": erase, "erase": erase, "turn": batch["turn"]}
        if not len(seen.anchors):
            return terms
        anchoring = mse_loss(seen.anchors, seen.frozen_anchors)
        return {**terms, "loss": erase + self.la_strength * anchoring, "anchoring": anchoring}

    def predictions(self, student: Apprentice, batch: Batch) -> "Predictions":
        """All predictions of a step: one pass through the membrane and one without it."""
        latents, timestep = batch["latents"], batch["timestep"]
        rows = len(latents)
        of = torch.arange(len(batch["anchors"]), device=latents.device) % rows
        target, positive, neutral = (
            batch[key].expand(rows, -1, -1) for key in ("target", "positive", "neutral")
        )
        through = distinct(
            student.predict,
            torch.cat([latents, latents[of]]),
            torch.cat([timestep, timestep[of]]),
            torch.cat([target, batch["anchors"]]),
        )
        past = distinct(
            student.teach,
            torch.cat([latents, latents, latents[of]]),
            torch.cat([timestep, timestep, timestep[of]]),
            torch.cat([positive, neutral, batch["anchors"]]),
        )
        return Predictions(
            through[:rows], past[:rows], past[rows : 2 * rows], through[rows:], past[2 * rows :]
        )

    # --- batches

    def batches(self, run: Run, numbers: Iterable[int]) -> Iterator[Batch]:
        """What one denoising through a concept's membrane, as it is now, comes by.

        All batches of a step are of the same concept.
        """
        student, model = run.student, run.model
        assert isinstance(student, Apprentice)
        positives = self._positives(run.policy)
        kept = run.policy.kept_prompts(self.contexts) or ("",)
        for number in numbers:
            student.turn = number // self.accumulation % len(run.policy.erase)
            draws = generator(run.seed, "spm batch", number)
            pairs = self.pairs(run.policy.erase[student.turn])
            words, neutral = pairs[_draw(draws, 0, len(pairs))]
            stops = [_draw(draws, 1, self.num_inference_steps) for _ in range(self.batch_size)]
            noise = torch.randn((1, *self._shape(model, draws)), generator=draws)
            noise = noise.to(model.device, model.dtype)
            target = model.condition([words])
            yield {
                "turn": torch.tensor(float(student.turn)),
                "latents": self.walked(student, noise, target, stops),
                "timestep": self.timesteps(model, stops),
                "target": target,
                "positive": model.condition([positives[student.turn] or words]),
                "neutral": model.condition([neutral]),
                "anchors": self._anchors(model, draws, target, kept),
            }

    def pairs(self, concept: Concept) -> list[tuple[str, str]]:
        """Prompts that name the concept, each beside its neutral one.

        The original knows the bare words, and the empty prompt if no anchor is named.
        """
        if self.fidelity == "original":
            return [(phrase, concept.anchor or "") for phrase in concept.phrases]
        return [
            (pair.erase, pair.anchor if concept.replacement else "")
            for pair in concept.pairs(self.contexts)
        ]

    def walked(
        self, student: Apprentice, noise: Tensor, target: Tensor, stops: Sequence[int]
    ) -> Tensor:
        """Latents after so many steps of one denoising, ``[stops, channels, height, width]``.

        The membrane of the student's turn is open in both branches of the guidance. ``noise`` is
        ``[1, channels, height, width]``, ``target`` ``[1, rows, width]``.
        """
        timetable = self._timetable(student.model)
        walk = denoise(
            student.predict,
            timetable,
            noise * timetable.init_noise_sigma,
            target,
            student.model.unconditional(),
            guidance_scale=self.start_guidance,
            timesteps=timetable.timesteps[: max(stops)],
        )
        after = [step.after for step in walk]
        return torch.cat([after[stop - 1] for stop in stops])

    def timesteps(self, model: Model, stops: Sequence[int]) -> Tensor:
        """The timesteps, ``[stops]``, at which latents are looked at.

        The original takes them from another timetable, where they say up to 42 too much.
        """
        if self.fidelity == "corrected":
            chosen: Tensor = self._timetable(model).timesteps[list(stops)]
            return chosen.to(model.device)
        count = len(model.pipe.scheduler.alphas_cumprod)
        late = [count - 1 - stop * count // self.num_inference_steps for stop in stops]
        return torch.tensor(late, device=model.device)

    def _timetable(self, model: Model) -> Any:
        """Of the denoising; in the original it has other ends, the last at no noise."""
        if self.fidelity == "corrected":
            return ddim(model.pipe.scheduler, self.num_inference_steps)
        from diffusers import DDIMScheduler

        scheduler = DDIMScheduler.from_config(
            model.pipe.scheduler.config,
            clip_sample=False,
            set_alpha_to_one=True,
            steps_offset=0,
            timestep_spacing="leading",
        )
        scheduler.set_timesteps(self.num_inference_steps)
        return scheduler

    def _shape(self, model: Model, draws: torch.Generator) -> tuple[int, int, int]:
        """Of the latents; with ``varied_size`` both sides are multiples of 64 pixels, drawn."""
        channels, *_ = model.latent_shape
        scale = model.pipe.vae_scale_factor
        sides = [
            64 * _draw(draws, -(-side // 128), -(-side // 64)) // scale
            if self.varied_size and min(model.image_size) >= 512
            else side // scale
            for side in model.image_size
        ]
        return channels, sides[0], sides[1]

    def _anchors(
        self, model: Model, draws: torch.Generator, target: Tensor, kept: Sequence[str]
    ) -> Tensor:
        """Embeddings, ``[anchors, rows, width]``, for which nothing may change."""
        if not self.la_strength:
            return target[:0]
        if self.fidelity == "original":
            drawn = noise_anchors(draws, target[0], self.anchors)
            return acting(drawn, model.unconditional(), self.anchor_split)
        count = round(self.anchors * self.keep_share)
        prompts = ["", *(kept[_draw(draws, 0, len(kept))] for _ in range(count - 1))][:count]
        noise = noise_anchors(draws, target[0], self.anchors - len(prompts))
        return torch.cat([model.condition(prompts), noise]) if prompts else noise

    def _positives(self, policy: Policy) -> Sequence[str]:
        """For each concept what leads away from it, "" for its own prompt."""
        given = self.positive or ("",)
        if len(given) not in (1, len(policy.erase)):
            raise ExpungeError(
                f"positive: {len(given)} prompts for {len(policy.erase)} concepts; give one for "
                "all of them or one for each"
            )
        return given * len(policy.erase) if len(given) == 1 else given


class Predictions(NamedTuple):
    """Noise predictions ``[rows, channels, height, width]``, the last two a row an anchor."""

    target: Tensor
    """Through the membrane."""
    positive: Tensor
    neutral: Tensor
    anchors: Tensor
    """Through the membrane."""
    frozen_anchors: Tensor


def _draw(draws: torch.Generator, low: int, high: int) -> int:
    """An integer from ``low`` to ``high - 1``."""
    return int(torch.randint(low, high, (), generator=draws))
