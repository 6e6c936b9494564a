"""What CiE and SepCE share: the loss, what they train on, and when training ends."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar, Generic, Literal

import torch
from pydantic import Field
from torch import Tensor

from expunge.concepts import Concept, Context, Policy
from expunge.errors import ExpungeError
from expunge.generation.sampler import Sampler
from expunge.generation.sampling import ImageRequest, sample
from expunge.method.base import Fixed, S, Trained
from expunge.method.batch import Batch
from expunge.method.run import Run
from expunge.method.training import DenoiserTraining, LearningRateSchedule
from expunge.methods.kept import KeepsEveryday
from expunge.methods.sepme.examples import (
    ComparedExamples,
    ConceptTrajectories,
    DrawExamples,
    Posterior,
    rows_of,
)
from expunge.methods.sepme.loss import direction, predictions, settled, weight_term
from expunge.methods.turns import wordings_in_turn
from expunge.models import Model
from expunge.pictures import PicturesSetting, latents_of, picture_bytes, pictures_of
from expunge.prior import mean_moment
from expunge.seeding import derive, generator
from expunge.training.trajectories import trajectories

ROLES = {"x": "cross_attention", "x-strict": "cross_attention.kv"}
"""The parameters that each ``train_method`` trains; the released program trains the first."""

BLOCK = 16
"""Number of pictures that the original draws at a time."""

RELEASED: Mapping[str, Any] = {
    "iterations": 1001,  # the program takes one step more than its limit of 1000
    "lr": 1e-6,
    "gradients": "cumulative",
    "threshold": 5e-5,
    "reg_beta": 1e-5,
    "num_inference_steps": 100,
}
"""Defaults of both released programs."""


class SepME(KeepsEveryday, DenoiserTraining, LearningRateSchedule, Trained[S], Generic[S]):
    """What CiE and SepCE share: the loss, what they train on, and when it ends."""

    year: ClassVar[int] = 2024
    url: ClassVar[str] = "https://arxiv.org/abs/2402.05947"
    released: ClassVar[Mapping[str, Any]] = RELEASED
    released_fixed: ClassVar[Fixed] = {
        "batch_size": (1, "the released program trains on one picture at a time"),
    }
    corrected_only: ClassVar[tuple[str, ...]] = ("contexts", "preserve_scale", "trajectories")

    train_method: Literal["x", "x-strict"] = "x-strict"
    """``x`` trains all of the cross-attention, ``x-strict`` only its keys and values."""
    iterations: int = Field(1000, ge=1)
    """Maximum number of optimiser steps; all concepts share them."""
    lr: float = Field(5e-5, gt=0)
    """Learning rate."""
    optimizer: str = "torch.optim.Adam"
    """Import path of the optimiser."""
    threshold: float = Field(0.0, allow_inf_nan=False)
    """Training ends when ``m`` is below this. ``m`` measures what is left of the concept: 1 at the
    start. Original: ``m`` is the plain mean of ``r' r``."""
    reg_beta: float = Field(0.1, ge=0)
    """beta: weight of the L1 norm of the change, as a share of the weights' L1 norm. Original: the
    plain L1 norm."""
    preserve_scale: float = Field(10.0, ge=0)
    """Weight of how far the keys and values of the prompts to keep, and of the concepts'
    replacements, have moved."""
    contexts: tuple[Context, ...] = ()
    """Sentences with ``{}`` for the words. Default: the words alone and the templates."""
    batch_size: int = Field(4, ge=1)
    """Latents in one step."""
    pictures: PicturesSetting | None = None
    """Your own pictures: a folder with one folder for each concept. Default: the model draws
    them."""
    trajectories: int = Field(16, ge=1)
    """Number of trajectories of each concept, if no pictures are given."""
    num_inference_steps: int = Field(50, ge=1, le=1000)
    """Denoising steps of each trajectory; original: of each picture."""
    guidance_scale: float = Field(7.5, ge=1)
    """Guidance scale of the trajectories or pictures."""

    def fewest_steps(self, policy: Policy) -> int:
        """Each step shows wordings of one concept."""
        most = max(len(concept.phrases) for concept in policy.erase)
        return len(policy.erase) * -(-most // (self.accumulation * self.batch_size))

    def parameters(self, model: Model) -> tuple[str, ...]:
        return model.select(ROLES[self.train_method])

    def loss(self, student: S, batch: Batch) -> dict[str, Tensor]:
        """``D + beta R`` for one concept, plus how far the held keys and values have moved."""
        changes = weight_term(student.change(name) for name in student.names)
        latents, timestep, frozen = batch["latents"], batch["timestep"], batch["representation"]
        concept = batch["concept"]
        if self.fidelity == "original":
            own, empty = predictions(student.predict, latents, timestep, concept, batch["empty"])
            term = direction(own - empty, frozen).mean()
            loss = term + self.reg_beta * changes
            return {"loss": loss, "direction": term, "weights": changes, "turn": batch["turn"]}
        own = student.predict(latents, timestep, concept)
        whole = direction(frozen, frozen).clamp(min=torch.finfo(torch.float32).tiny)
        share = direction(own - batch["without"], frozen) / whole
        moved = changes / weight_term(student.before(name) for name in student.names)
        held = student.projection_change(batch["held"])
        erased = share.clamp(min=0).mean()
        return {
            "loss": erased + self.reg_beta * moved + self.preserve_scale * held,
            "direction": share.mean(),
            "weights": moved,
            "held": held,
            "turn": batch["turn"],
        }

    def finished(self, history: Sequence[Mapping[str, float]]) -> bool:
        """Whether every concept meets the stopping rule."""
        directions: dict[int, list[float]] = defaultdict(list)
        for record in history:
            directions[round(record["turn"])].append(record["direction"])
        return bool(history) and all(
            settled(values, self.limit(turn)) for turn, values in directions.items()
        )

    def limit(self, turn: int) -> float:
        """The threshold of a concept."""
        return self.threshold

    # --- batches

    def batches(self, run: Run[S], numbers: Iterable[int]) -> Iterator[Batch]:
        """Batches of one concept each; all batches of a step belong to the same concept."""
        concepts, device = run.policy.erase, run.model.device
        if self.fidelity == "original" and len(concepts) > 1:
            raise ExpungeError(
                f"{self.name}: the released program erases one concept in a run; "
                'use fidelity="corrected" for several'
            )
        drawn = self.fidelity == "corrected" and self.pictures is None
        draw = self._trajectory_examples(run) if drawn else self._picture_examples(run)
        held = {} if self.fidelity == "original" else {"held": self._held(run)}
        for number in numbers:
            turn = number // self.accumulation % len(concepts)
            rows = draw(number, turn)._asdict()
            batch = {key: value.to(device) for key, value in rows.items()}
            yield {**batch, **held, "turn": torch.tensor(float(turn))}

    def _trajectory_examples(self, run: Run) -> DrawExamples:
        """Examples from the frozen model's trajectories; any of their latents can be one."""
        tables = [self._table(run, turn) for turn in range(len(run.policy.erase))]

        def draw(number: int, turn: int) -> ComparedExamples:
            draws = generator(run.seed, "cie batch", number)
            walks, concept, empty = tables[turn]
            count, steps = walks.latents.shape[:2]
            walk = torch.randint(count, (self.batch_size,), generator=draws)
            step = torch.randint(steps, (self.batch_size,), generator=draws)
            without = walks.anchor[walk, step].float()
            return ComparedExamples(
                walks.latents[walk, step],
                walks.timesteps[step],
                concept[walk],
                empty[walk],
                walks.conditional[walk, step].float() - without,
                without,
            )

        return draw

    def _table(self, run: Run, turn: int) -> ConceptTrajectories:
        """Trajectories of a concept's prompts, which take turns in random order."""
        pairs = self.pairs(run.policy.erase[turn])
        draws = generator(run.seed, "cie pairs", turn)
        chosen = wordings_in_turn(run.policy.erase[turn], pairs, self.trajectories, draws)
        prompts, empty = zip(*chosen, strict=True)
        walks = trajectories(
            run,
            f"cie-{turn}",
            prompts,
            [derive(run.seed, "cie trajectory", *pair, i) for i, pair in enumerate(chosen)],
            anchors=empty,
            steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
        )
        return ConceptTrajectories(walks, run.model.condition(prompts), run.model.condition(empty))

    def _picture_examples(self, run: Run) -> DrawExamples:
        """Examples from noised pictures, with what the frozen model predicts for them."""
        model, concepts = run.model, run.policy.erase
        process = model.process
        posterior = self._posterior(run)
        prompts = [self.pairs(concept) for concept in concepts]
        pairs = [tuple(map(model.condition, zip(*pairs, strict=True))) for pairs in prompts]

        def draw(number: int, turn: int) -> ComparedExamples:
            draws = generator(run.seed, "cie batch", number)
            mean, deviation = posterior(number, turn, draws)
            wobble, noise = torch.randn((2, *mean.shape), generator=draws).to(model.device)
            timestep = torch.randint(process.times, (len(mean),), generator=draws).to(model.device)
            latents = process.mix(mean + wobble * deviation, noise, timestep)
            rows = torch.randint(len(prompts[turn]), (len(mean),), generator=draws)
            concept, empty = (conditions[rows] for conditions in pairs[turn])
            return rows_of(run.student, latents, timestep, concept, empty)

        return draw

    def _posterior(self, run: Run) -> Posterior:
        """What the VAE makes of a batch's pictures.

        The released program uses every given picture once. Without pictures, it draws them.
        """
        model, concepts = run.model, run.policy.erase
        if self.pictures is None:
            return self._drawn_posterior(run)
        own = (pictures_of(model, self.pictures, concept.target) for concept in concepts)
        given = [latents_of(model, picture_bytes(pictures)) for pictures in own]
        once, needed = self.fidelity == "original", self.iterations * self.accumulation
        fewest = min(len(mean) for mean, _ in given)
        if once and needed > fewest:
            raise ExpungeError(
                f"pictures: the released program uses each of the {fewest} once, so "
                f"they don't last for {needed} batches; lower iterations or give more"
            )

        def chosen(number: int, turn: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
            mean, deviation = given[turn]
            drawn = torch.randint(len(mean), (self.batch_size,), generator=draws)
            rows = torch.tensor([number]) if once else drawn
            return mean[rows], deviation[rows]

        return chosen

    def _drawn_posterior(self, run: Run) -> Posterior:
        """The same for pictures that the model draws, a block at a time and only when needed."""
        sampler = Sampler(
            scheduler="lms", steps=self.num_inference_steps, guidance_scale=self.guidance_scale
        )

        @lru_cache(maxsize=len(run.policy.erase))
        def block(first: int, turn: int) -> tuple[Tensor, Tensor]:
            words = run.policy.erase[turn].target
            requests = [
                ImageRequest(
                    case_number=str(number),
                    prompt=words,
                    seed=derive(run.seed, "cie picture", words, number),
                )
                for number in range(first, first + BLOCK)
            ]
            colours = [picture for _, picture in sample(run.model, requests, sampler)]
            return latents_of(run.model, torch.stack(colours))

        def chosen(number: int, turn: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
            row = number % BLOCK
            mean, deviation = block(number - row, turn)
            return mean[row : row + 1], deviation[row : row + 1]

        return chosen

    def pairs(self, concept: Concept) -> list[tuple[str, str]]:
        """Prompts that name the concept, each with the ``a`` that it is compared with.

        The original uses the target's bare words and the empty prompt.
        """
        if self.fidelity == "original":
            return [(concept.target, "")]
        return concept.neutral_pairs(self.contexts)

    def _held(self, run: Run) -> Tensor:
        """Mean Gram matrix, ``[width, width]``, of the prompts to keep and of every ``a``."""
        pairs = [pair for concept in run.policy.erase for pair in self.pairs(concept)]
        stays = self.stays(run.policy, self.contexts, run.seed)
        prompts = ["", *(empty for _, empty in pairs), *stays]
        return mean_moment(run.model, list(dict.fromkeys(prompts)))
