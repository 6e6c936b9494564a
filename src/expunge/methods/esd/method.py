"""ESD: Erasing Concepts from Diffusion Models (Gandikota et al., ICCV 2023).

The UNet learns to predict, for the erased prompt c, the frozen model's noise pushed away from it::

    eps(x, t, c)  ->  eps*(x, t, a) - eta (eps*(x, t, c) - eps*(x, t, a))

with the anchor a (the empty prompt in the paper) and the latents x on denoising trajectories.
With ``erase_from`` the concept is taken out of another prompt f, and only f is trained on::

    eps(x, t, f)  ->  eps*(x, t, f) - eta (eps*(x, t, c) - eps*(x, t, a))

``corrected`` is the default: the frozen model draws whole trajectories once, in batches, every
latent of them can serve many steps, and the targets fall out on the way; words are erased inside
sentences too; and what is to be kept, if anything is named, is taught to stay. ``original`` is
one of the released programs, quirks and all (``released.py``).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from expunge.concepts import Concept, Context, Policy, WordList
from expunge.errors import ExpungeError
from expunge.method.base import Fixed
from expunge.method.batch import Batch
from expunge.method.run import Run
from expunge.method.student import Student
from expunge.method.training import TrainedWeights
from expunge.methods.esd.released import DEFAULTS, SELECTIONS, EsdProgram, Variant, parameters
from expunge.models import Condition, Model
from expunge.prior import mean_moment
from expunge.seeding import derive, generator
from expunge.training.trajectories import Trajectories, trajectories

Item = TypeVar("Item")

ROLES = {
    "x": "cross_attention",
    "x-strict": "cross_attention.kv",
    "u": "not_cross_attention",
    "selfattn": "self_attention",
    "full": "all",
}
"""Parameter groups of the corrected method."""


class ESD(TrainedWeights):
    """Fine-tuning away from the concept, with negative guidance as the target."""

    name: ClassVar[str] = "esd"
    title: ClassVar[str] = "Erased Stable Diffusion"
    year: ClassVar[int] = 2023
    url: ClassVar[str] = "https://arxiv.org/abs/2303.07345"
    families: ClassVar[tuple[str, ...]] = ("sd", "sdxl")
    released_fixed: ClassVar[Fixed] = {
        **TrainedWeights.released_fixed,
        "batch_size": (1, "the released programs train on one latent at a time"),
    }
    corrected_only: ClassVar[tuple[str, ...]] = (
        "contexts",
        "trajectories",
        "keep_share",
        "preserve_scale",
    )
    original_only: ClassVar[tuple[str, ...]] = ("variant",)

    variant: Variant | None = None
    """The released program to follow; only with ``fidelity="original"``."""
    train_method: str = "x"
    """x, x-strict, u, selfattn or full; with a variant, the names of that program."""
    negative_guidance: float = 1.0
    """eta: how far from the concept."""
    start_guidance: float = 3.0
    """Guidance scale of the trajectories."""
    iterations: int = Field(200, ge=1)
    """Optimiser steps."""
    lr: float = Field(5e-5, gt=0)
    """Learning rate."""
    optimizer: str = "torch.optim.Adam"
    """Import path of the optimiser."""
    num_inference_steps: int = Field(50, ge=2, le=1000)
    """Steps of a whole trajectory."""
    erase_from: WordList = ()
    """The only prompt that the concept is taken out of; for several, one each or one for all."""
    contexts: tuple[Context, ...] = ()
    """Sentences with ``{}`` for the concept; by default the words alone and the templates."""
    batch_size: int = Field(4, ge=1)
    """Latents in one step."""
    trajectories: int = Field(16, ge=1)
    """Trajectories of each erased concept; as many again of the prompts to keep, if any."""
    keep_share: float = Field(0.5, ge=0, lt=1)
    """Part of a batch that comes from the prompts to keep, if any are named."""
    preserve_scale: float = Field(1.0, ge=0)
    """Weight of the relative change of the keys and values of the prompts to keep."""

    @classmethod
    def with_released(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """An original run starts from its program's defaults."""
        variant = values.get("variant") or "compvis"
        defaults = DEFAULTS[variant]._asdict() if variant in DEFAULTS else {}
        return super().with_released({**defaults, **values, "variant": variant})

    @model_validator(mode="after")
    def _consistent(self) -> "ESD":
        if self.fidelity == "corrected" and self.train_method not in ROLES:
            raise ValueError(f"train_method: choose one of {', '.join(ROLES)}")
        if self.variant == "compvis" and self.erase_from:
            raise ValueError("erase_from: the compvis program doesn't have it, the others do")
        return self

    def parameters(self, model: Model) -> tuple[str, ...]:
        if self.variant is None:
            return model.select(ROLES[self.train_method])
        if (self.variant == "diffusers-sdxl") != (model.family == "sdxl"):
            raise ExpungeError(f"variant: {self.variant} isn't for a model of {model.family}")
        names = parameters(model, self.variant, self.train_method)
        if not names:
            known = ", ".join(SELECTIONS[self.variant])
            raise ExpungeError(
                f"train_method {self.train_method!r} selects nothing in {self.variant} "
                f"(it knows {known})"
            )
        return names

    @property
    def program(self) -> EsdProgram | None:
        """The released program that an original run follows."""
        if self.variant is None:
            return None
        return EsdProgram(
            self.variant, self.num_inference_steps, self.start_guidance, self.negative_guidance
        )

    def batches(self, run: Run, numbers: Iterable[int]) -> Iterator[Batch]:
        if self.program:
            pairs = [(c.target, prompt or c.target) for c, prompt in self._sources(run.policy)]
            yield from self.program.batches(run, pairs, numbers)
            return
        table = self._table(run)
        kept = round(self.batch_size * self.keep_share) if table.kept else 0
        words = self._kept_words(run.model, run.policy)
        for number in numbers:
            batch = table.draw(generator(run.seed, "esd batch", number), self.batch_size, kept)
            yield {**batch, **words}

    def loss(self, student: Student, batch: Batch) -> Tensor:
        """Mean squared distance of the student's prediction from the target.

        With prompts to keep, also ``preserve_scale`` times how far their keys and values moved.
        """
        latents, timestep = batch["latents"], batch["timestep"]
        target = self.program.target(student, batch) if self.program else batch["target"]
        predicted = student.predict(latents, timestep, batch["condition"])
        loss = torch.nn.functional.mse_loss(predicted, target)
        if "kept_words" in batch:
            loss = loss + self.preserve_scale * student.projection_change(batch["kept_words"])
        return loss

    def _kept_words(self, model: Model, policy: Policy) -> dict[str, Tensor]:
        """The Gram matrix of the embeddings to keep, ``[width, width]``, if there are any."""
        prompts = policy.kept_prompts(self.contexts) if self.preserve_scale else ()
        if not prompts:
            return {}
        return {"kept_words": mean_moment(model, prompts)}

    def _sources(self, policy: Policy) -> list[tuple[Concept, str]]:
        """Each concept with the prompt that it is taken out of, "" for its own."""
        prompts = self.erase_from or ("",)
        if len(prompts) not in (1, len(policy.erase)):
            raise ExpungeError(
                f"erase_from: {len(prompts)} prompts for {len(policy.erase)} concepts; give one "
                "for all of them or one for each"
            )
        each = prompts * len(policy.erase) if len(prompts) == 1 else prompts
        return list(zip(policy.erase, each, strict=True))

    def _table(self, run: Run) -> "ExamplePool":
        erased = self._taken_out(run) if self.erase_from else self._erased(run)
        return ExamplePool(erased, self._kept(run))

    def _erased(self, run: Run) -> "TrajectoryExamples":
        """Every latent of the erased prompts' trajectories, with its target."""
        pairs = [
            pair
            for concept in run.policy.erase
            for pair in self._spread(run, concept.neutral_pairs(self.contexts), 1)
        ]
        drawn = self._trajectories_of(run, "erased", pairs, [anchor for _, anchor in pairs])
        away = drawn.conditional - drawn.anchor
        return _rows(run, pairs, drawn, drawn.anchor - self.negative_guidance * away)

    def _taken_out(self, run: Run) -> "TrajectoryExamples":
        """Every latent of the trajectories of ``erase_from``, with its target.

        A trajectory's target leads away from one concept. If several concepts share a prompt, each
        target is scaled by their number, so that the mean of the targets leads away from all.
        """
        rows = [
            ((prompt, phrase), concept.replacement)
            for concept, prompt in self._sources(run.policy)
            for phrase in self._spread(run, concept.phrases, 1)
        ]
        pairs, anchors = [pair for pair, _ in rows], [anchor for _, anchor in rows]
        drawn = self._trajectories_of(run, "taken out", pairs, [phrase for _, phrase in pairs])
        anchor = drawn.unconditional
        if any(anchors):
            anchor = self._trajectories_of(run, "anchors", pairs, anchors).anchor
        of_prompt = Counter(prompt for prompt, _ in pairs)
        sharing = torch.tensor([of_prompt[prompt] / self.trajectories for prompt, _ in pairs])
        eta = self.negative_guidance * sharing.to(anchor)[:, None, None, None, None]
        return _rows(run, pairs, drawn, drawn.conditional - eta * (drawn.anchor - anchor))

    def _kept(self, run: Run) -> "TrajectoryExamples | None":
        """Every latent of the kept prompts' trajectories, whose target is the base's prediction."""
        prompts = run.policy.kept_prompts(self.contexts) if self.keep_share else ()
        if not prompts:
            return None
        pairs = [(p, p) for p in self._spread(run, prompts, len(run.policy.erase))]
        drawn = self._trajectories_of(run, "kept", pairs, ())
        return _rows(run, pairs, drawn, drawn.conditional)

    def _spread(self, run: Run, items: Sequence[Item], times: int) -> list[Item]:
        """``times`` the number of trajectories of these, in random order, all equally often."""
        order = torch.randperm(len(items), generator=generator(run.seed, "esd pairs")).tolist()
        return [items[order[at % len(items)]] for at in range(times * self.trajectories)]

    def _trajectories_of(
        self, run: Run, name: str, pairs: Sequence[tuple[str, str]], anchors: Sequence[str]
    ) -> Trajectories:
        """A trajectory of the first prompt of each pair; the seed depends on the whole pair."""
        return trajectories(
            run,
            name,
            [prompt for prompt, _ in pairs],
            [derive(run.seed, "trajectory", *pair, i) for i, pair in enumerate(pairs)],
            anchors=anchors,
            steps=self.num_inference_steps,
            guidance_scale=self.start_guidance,
        )


class TrajectoryExamples(NamedTuple):
    """Training examples, ``[trajectories, steps, ...]``."""

    latents: Tensor
    timestep: Tensor
    condition: Condition
    """One a trajectory."""
    target: Tensor

    def some(self, draws: torch.Generator, count: int) -> Batch:
        """Examples at random."""
        size = self.timestep.numel()
        return self.rows([int(torch.randint(size, (), generator=draws)) for _ in range(count)])

    def rows(self, numbers: Sequence[int]) -> Batch:
        """Some examples, counted trajectory by trajectory."""
        steps = self.timestep.shape[1]
        trajectory, step = [n // steps for n in numbers], [n % steps for n in numbers]
        return {
            "latents": self.latents[trajectory, step],
            "timestep": self.timestep[trajectory, step],
            "condition": self.condition[trajectory],
            "target": self.target[trajectory, step],
        }


def _rows(
    run: Run, pairs: Sequence[tuple[str, str]], drawn: Trajectories, target: Tensor
) -> TrajectoryExamples:
    """Every latent of all trajectories, trained on the first prompt of its pair."""
    condition = run.model.condition([prompt for prompt, _ in pairs])
    timestep = drawn.timesteps.expand(len(pairs), -1)
    return TrajectoryExamples(drawn.latents, timestep, condition, target.float())


class ExamplePool(NamedTuple):
    """Examples of erased prompts, and of prompts to keep if there are any."""

    erased: TrajectoryExamples
    kept: TrajectoryExamples | None

    def draw(self, draws: torch.Generator, size: int, kept: int) -> Batch:
        """A batch of ``size`` rows, ``kept`` of them of prompts to keep."""
        parts = [self.erased.some(draws, size - kept)]
        if self.kept and kept:
            parts.append(self.kept.some(draws, kept))
        condition = Condition.cat([part["condition"] for part in parts])
        tensors = ("latents", "timestep", "target")
        whole = {key: torch.cat([part[key] for part in parts]) for key in tensors}
        return {**whole, "condition": condition}
