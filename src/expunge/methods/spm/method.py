"""SPM: One-dimensional Adapter to Rule Them All (Lyu et al., CVPR 2024).

Each concept gets a semi-permeable membrane: thin factors ``U_l D_l`` beside every linear layer and
1 x 1 convolution ``l`` of the UNet's transformers. ``eps`` is the frozen noise prediction and
``eps_m`` the one with the membrane. The latents x come from denoising with the membrane. The loss::

    L = |eps_m(x, t, c) - (eps(x, t, c0) - eta (eps(x, t, c) - eps(x, t, c0)))|^2
        + lambda mean over anchors a of |eps_m(x, t, a) - eps(x, t, a)|^2

moves the concept c to the neutral c0 and beyond, and holds whatever else the model draws ("latent
anchoring", eq. 6 to 8). The closer a prompt is to the erased phrases, the further a trained
membrane opens (``edits/membranes.py``). So membranes of many concepts, trained separately, work
together.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import mse_loss

from expunge.concepts import Concept, Context, Policy, WordList
from expunge.edits.membranes import Metric, Rule
from expunge.method.base import Fixed, Part, PolicyPart, Trained
from expunge.method.batch import Batch
from expunge.method.run import Run
from expunge.method.training import DenoiserTraining, LearningRateSchedule
from expunge.methods.each import one_each
from expunge.methods.kept import KeepsEveryday, kept_count
from expunge.methods.spm.anchors import Split, acting, noise_anchors
from expunge.methods.spm.student import Acts, MembraneStudent, distinct
from expunge.models import Condition, Model
from expunge.seeding import generator, integer
from expunge.training.trajectories import ddim, denoise

ORIGINAL: Mapping[str, Any] = {
    "iterations": 3000,
    "lr_warmup": 500,
    "anchor_split": "released",
    "varied_size": True,
    "rule": "released",
}
"""Defaults of the released program, where they differ from ours."""


class SPM(KeepsEveryday, DenoiserTraining, LearningRateSchedule, Trained[MembraneStudent]):
    """Thin membranes that open the further, the closer a prompt is to what is erased."""

    name: ClassVar[str] = "spm"
    title: ClassVar[str] = "concept Semi-Permeable Membrane"
    year: ClassVar[int] = 2024
    url: ClassVar[str] = "https://arxiv.org/abs/2312.16145"
    released: ClassVar[Mapping[str, Any]] = ORIGINAL
    released_fixed: ClassVar[Fixed] = {
        "batch_size": (1, "the released program trains on one latent at a time"),
    }
    corrected_only: ClassVar[tuple[str, ...]] = ("contexts", "keep_share")
    released_ignored: ClassVar[frozenset[PolicyPart]] = frozenset({"keep"})
    original_only: ClassVar[tuple[str, ...]] = ("anchor_split",)
    released_synonyms: ClassVar[bool] = True

    negative_guidance: float = Field(1.0, ge=0)
    """eta: how far beyond the neutral prompt the concept is moved."""
    la_strength: float = Field(1000.0, ge=0)
    """lambda: weight of latent anchoring; 0 leaves it out."""
    everyday: int = Field(0, ge=0)
    """How many everyday prompts stay where nothing to keep is named: a random choice, without those
    that name what is erased. 0: none."""
    anchors: int = Field(4, ge=1)
    """Number of anchors in one step."""
    anchor_split: Split = "all"
    """``released`` drops half of the anchors, as the released program does by mistake."""
    keep_share: float = Field(0.5, ge=0, le=1)
    """Share of the anchors that are prompts: the empty one, then random prompts to keep. The rest
    are random embeddings."""
    positive: WordList = ()
    """The prompt that the concept is moved away from, one for each concept or one for all. Default:
    the concept's own."""
    contexts: tuple[Context, ...] = ()
    """Sentences with ``{}`` for the words. Default: the words alone and the templates."""
    start_guidance: float = Field(3.0, ge=1)
    """Guidance scale of the denoising that the latents come from."""
    num_inference_steps: int = Field(30, ge=2, le=1000)
    """Steps of a whole denoising."""
    batch_size: int = Field(4, ge=1)
    """Latents in one step, all from one denoising."""
    varied_size: bool = False
    """Train on pictures of 50 to 90 % of the model's height and width, if these are 512 or more."""
    iterations: int = Field(1000, ge=1)
    """Optimiser steps; concepts take turns."""
    lr: float = Field(1e-4, gt=0)
    """Learning rate."""
    weight_decay: float = Field(0.01, ge=0)
    """Decay of the factors."""
    lr_schedule: str = "cosine_with_restarts"
    """Name of a schedule in ``diffusers.optimization``, e.g. constant."""
    lr_cycles: int = Field(3, ge=1)
    """Number of cycles, for schedules that restart."""
    rank: int = Field(1, ge=1)
    """Rank of a membrane in each layer."""
    alpha: float = Field(1.0, gt=0)
    """``alpha / rank`` scales what a membrane adds."""
    rule: Rule = "paper"
    """How membranes add up: ``sum g U D`` (``paper``) or ``(sum g U)(sum g D)`` (``released``)."""
    metric: Metric = "clipcos_tokenuni"
    """How close a prompt is to a phrase: cosine of their embeddings (``clipcos``), share of the
    phrase's tokens (``tokenuni``), the larger of the two, or always 1 (``allone``)."""
    strength: float = Field(1.0, gt=0)
    """Factor of the closeness ("facilitate_factor")."""

    def fewest_steps(self, policy: Policy) -> int:
        """Each step trains one concept's membrane, which every wording of it opens."""
        return len(policy.erase)

    def parameters(self, model: Model) -> tuple[str, ...]:
        return model.select("transformers")

    def student(self, model: Model, policy: Policy, seed: int) -> MembraneStudent:
        return MembraneStudent(
            model,
            self.parameters(model),
            [concept.phrases for concept in policy.erase],
            rank=self.rank,
            alpha=self.alpha,
            seed=seed,
            acts=Acts(self.strength, self.rule, self.metric),
        )

    def parts(self, student: MembraneStudent, policy: Policy) -> Sequence[Part]:
        """One membrane for each concept."""
        return [Part((one,), student.gate(number)) for number, one in enumerate(policy.erase)]

    # --- the loss

    def loss(self, student: MembraneStudent, batch: Batch) -> dict[str, Tensor]:
        """What is left of the concept, plus ``lambda`` times how far the anchors have moved."""
        seen = self.predictions(student.for_batch(batch), batch)
        away = seen.neutral - self.negative_guidance * (seen.positive - seen.neutral)
        erase = mse_loss(seen.target, away)
        terms = {"loss": erase, "erase": erase, "turn": batch["turn"]}
        if not len(seen.anchors):
            return terms
        anchoring = mse_loss(seen.anchors, seen.frozen_anchors)
        return {**terms, "loss": erase + self.la_strength * anchoring, "anchoring": anchoring}

    def predictions(self, student: MembraneStudent, batch: Batch) -> "Predictions":
        """All predictions of a step: one pass through the membrane and one without it."""
        latents, timestep = batch["latents"], batch["timestep"]
        rows = len(latents)
        of = torch.arange(len(batch["anchors"]), device=latents.device) % rows
        target, positive, neutral = (
            batch[key].expand(rows) for key in ("target", "positive", "neutral")
        )
        through = distinct(
            student.predict,
            torch.cat([latents, latents[of]]),
            torch.cat([timestep, timestep[of]]),
            Condition.cat([target, batch["anchors"]]),
        )
        past = distinct(
            student.teach,
            torch.cat([latents, latents, latents[of]]),
            torch.cat([timestep, timestep, timestep[of]]),
            Condition.cat([positive, neutral, batch["anchors"]]),
        )
        return Predictions(
            through[:rows], past[:rows], past[rows : 2 * rows], through[rows:], past[2 * rows :]
        )

    # --- batches

    def batches(self, run: Run[MembraneStudent], numbers: Iterable[int]) -> Iterator[Batch]:
        """Latents of one denoising with a concept's current membrane.

        All batches of a step belong to the same concept.
        """
        model = run.model
        positives = one_each("positive", self.positive, run.policy.erase)
        kept = self.stays(run.policy, self.contexts, run.seed) or ("",)
        for number in numbers:
            turn = number // self.accumulation % len(run.policy.erase)
            draws = generator(run.seed, "spm batch", number)
            pairs = self.pairs(run.policy.erase[turn])
            words, neutral = pairs[integer(draws, 0, len(pairs))]
            stops = [integer(draws, 1, self.num_inference_steps) for _ in range(self.batch_size)]
            noise = torch.randn((1, *self._shape(model, draws)), generator=draws)
            noise = noise.to(model.device, model.dtype)
            target = model.condition([words])
            yield {
                "turn": torch.tensor(float(turn)),
                "latents": self.denoised_latents(
                    run.student.taking_turn(turn), noise, target, stops
                ),
                "timestep": self.timesteps(model, stops),
                "target": target,
                "positive": model.condition([positives[turn] or words]),
                "neutral": model.condition([neutral]),
                "anchors": self._anchors(model, draws, target, kept),
            }

    def pairs(self, concept: Concept) -> list[tuple[str, str]]:
        """Prompts that name the concept, each with its neutral one.

        The original uses bare words, and the empty prompt if no anchor is named.
        """
        if self.fidelity == "original":
            return [(phrase, concept.anchor or "") for phrase in concept.phrases]
        return concept.neutral_pairs(self.contexts)

    def denoised_latents(
        self, student: MembraneStudent, noise: Tensor, target: Condition, stops: Sequence[int]
    ) -> Tensor:
        """Latents after each of these numbers of steps, ``[stops, channels, height, width]``.

        They come from one denoising. The student's open membrane acts on both branches of the
        guidance. ``noise`` is ``[1, channels, height, width]``, ``target`` belongs to one prompt.
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
        """The timesteps, ``[stops]``, at which latents are evaluated.

        The original takes them from another timetable; they are up to 42 too large.
        """
        if self.fidelity == "corrected":
            chosen: Tensor = self._timetable(model).timesteps[list(stops)]
            return chosen.to(model.device)
        count = model.process.times
        late = [count - 1 - stop * count // self.num_inference_steps for stop in stops]
        return torch.tensor(late, device=model.device)

    def _timetable(self, model: Model) -> Any:
        """The scheduler of the denoising; the original's has other ends, the last without noise."""
        if self.fidelity == "corrected":
            return ddim(model.process, self.num_inference_steps)
        return model.process.scheduler(
            "ddim",
            self.num_inference_steps,
            set_alpha_to_one=True,
            steps_offset=0,
            timestep_spacing="leading",
        )

    def _shape(self, model: Model, draws: torch.Generator) -> tuple[int, int, int]:
        """The shape of the latents; ``varied_size`` draws both sides as multiples of 64 pixels."""
        channels, *_ = model.latent_shape
        scale = model.image_size[0] // model.latent_shape[1]
        sides = [
            64 * integer(draws, -(-side // 128), -(-side // 64)) // scale
            if self.varied_size and min(model.image_size) >= 512
            else side // scale
            for side in model.image_size
        ]
        return channels, sides[0], sides[1]

    def _anchors(
        self, model: Model, draws: torch.Generator, target: Condition, kept: Sequence[str]
    ) -> Condition:
        """Conditions for which predictions must not change."""
        if not self.la_strength:
            return target[:0]
        rows = target.rows[0]
        if self.fidelity == "original":
            drawn = noise_anchors(draws, rows, self.anchors)
            return Condition(acting(drawn, model.unconditional().rows, self.anchor_split))
        count = kept_count("anchors", self.anchors, self.keep_share)
        prompts = ["", *(kept[integer(draws, 0, len(kept))] for _ in range(count - 1))][:count]
        if count == 1:  # the empty prompt and those to keep take turns
            prompts = ["", *kept][integer(draws, 0, 1 + len(kept)) :][:1]
        noise = Condition(noise_anchors(draws, rows, self.anchors - len(prompts)))
        return Condition.cat([model.condition(prompts), noise]) if prompts else noise


class Predictions(NamedTuple):
    """Noise predictions ``[rows, channels, height, width]``, the last two with a row an anchor."""

    target: Tensor
    """With the membrane."""
    positive: Tensor
    neutral: Tensor
    anchors: Tensor
    """With the membrane."""
    frozen_anchors: Tensor
