"""ESD: Erasing Concepts from Diffusion Models (Gandikota et al., ICCV 2023).

For the erased prompt c, the UNet learns to predict the frozen model's noise, pushed away from c::

    eps(x, t, c)  ->  eps*(x, t, a) - eta (eps*(x, t, c) - eps*(x, t, a))

Here a is the anchor (the empty prompt in the paper) and x are latents on denoising trajectories.
With ``erase_from``, the concept is removed from another prompt f, and training uses only f::

    eps(x, t, f)  ->  eps*(x, t, f) - eta (eps*(x, t, c) - eps*(x, t, a))

In ``corrected``, the default, the frozen model draws whole trajectories once, in batches. Any of
their latents can serve many steps, and the targets are computed on the way. Words are erased inside
sentences too, and the prompts to keep, if any, are held. ``original`` follows one of the released
programs, quirks included (``released.py``).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from expunge.concepts import Concept, Context, Policy, WordList
from expunge.errors import ExpungeError
from expunge.method.base import Fixed, PolicyPart
from expunge.method.batch import Batch
from expunge.method.run import Run
from expunge.method.student import Student
from expunge.method.training import TrainedWeights
from expunge.methods.each import one_each
from expunge.methods.esd.released import DEFAULTS, SELECTIONS, EsdProgram, EsdVariant, parameters
from expunge.methods.kept import KeepsEveryday, KeepsPrior, kept_count
from expunge.methods.turns import wordings_in_turn
from expunge.models import Condition, Model
from expunge.prior import PriorSetting
from expunge.seeding import derive, generator
from expunge.training.trajectories import Trajectories, trajectories

Spread = TypeVar("Spread")

ROLES = {
    "x": "cross_attention",
    "x-strict": "cross_attention.kv",
    "u": "not_cross_attention",
    "selfattn": "self_attention",
    "full": "all",
}
"""The parameters that each ``train_method`` trains when corrected."""


class ESD(KeepsEveryday, KeepsPrior, TrainedWeights):
    """Fine-tuning away from the concept, towards negatively guided predictions."""

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
    released_ignored: ClassVar[frozenset[PolicyPart]] = frozenset({"keep", "anchor"})
    original_only: ClassVar[tuple[str, ...]] = ("variant",)

    variant: EsdVariant | None = None
    """The released program to follow; needs ``fidelity="original"``."""
    train_method: str = "x"
    """What is trained: the cross-attention (x), only its keys and values (x-strict), everything but
    the cross-attention (u), the self-attention (selfattn) or all (full). With a variant: a name of
    that program."""
    negative_guidance: float = 1.0
    """eta: how far to move away from the concept."""
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
    """Remove the concept only from this prompt; for several concepts, one for each or one for
    all."""
    contexts: tuple[Context, ...] = ()
    """Sentences with ``{}`` for the words. Default: the words alone and the templates."""
    batch_size: int = Field(4, ge=1)
    """Latents in one step."""
    trajectories: int = Field(16, ge=1)
    """Trajectories of each erased concept; as many again of the prompts to keep, if any."""
    keep_share: float = Field(0.5, ge=0, lt=1)
    """Share of a batch that comes from the prompts to keep, if any."""
    everyday: int = Field(0, ge=0)
    """How many everyday prompts stay where nothing to keep is named: a random choice, without those
    that name what is erased. 0: none."""
    prior: PriorSetting = None
    """Ordinary prompts whose keys and values stay too, with the weight of those that are named:
    ``default`` for everyday ones, ``none``, or a file written by ``expunge prior``."""
    preserve_scale: float = Field(1.0, ge=0)
    """Weight of how far the keys and values of the prompts to keep have moved, relative to their
    size."""

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
            raise ValueError("erase_from: the compvis program doesn't have it; the others do")
        return self

    def parameters(self, model: Model) -> tuple[str, ...]:
        if self.variant is None:
            return model.select(ROLES[self.train_method])
        if (self.variant == "diffusers-sdxl") != (model.family == "sdxl"):
            raise ExpungeError(f"variant: {self.variant} isn't for models of family {model.family}")
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
        stays = self.stays(run.policy, self.contexts, run.seed)
        kept = kept_count("batch_size", self.batch_size, self.keep_share) if stays else 0
        table = self._table(run, stays)
        words = self.kept_words(run.model, run.policy, stays, self.preserve_scale)
        for number in numbers:
            batch = table.draw(generator(run.seed, "esd batch", number), self.batch_size, kept)
            yield {**batch, **words}

    def loss(self, student: Student, batch: Batch) -> Tensor:
        """Mean squared distance of the student's prediction from the target.

        With prompts to keep, it adds ``preserve_scale`` times how far their keys and values moved.
        """
        latents, timestep = batch["latents"], batch["timestep"]
        target = self.program.target(student, batch) if self.program else batch["target"]
        predicted = student.predict(latents, timestep, batch["condition"])
        loss = torch.nn.functional.mse_loss(predicted, target)
        if "kept_words" in batch:
            loss = loss + self.preserve_scale * student.projection_change(batch["kept_words"])
        return loss

    def _sources(self, policy: Policy) -> list[tuple[Concept, str]]:
        """Each concept with the prompt that it is removed from, "" for its own."""
        prompts = one_each("erase_from", self.erase_from, policy.erase)
        return list(zip(policy.erase, prompts, strict=True))

    def _table(self, run: Run, stays: Sequence[str]) -> "ExamplePool":
        erased = self._taken_out(run) if self.erase_from else self._erased(run)
        return ExamplePool(erased, self._kept(run, stays) if stays and self.keep_share else None)

    def _erased(self, run: Run) -> "TrajectoryExamples":
        """Every latent of the erased prompts' trajectories, with its target."""
        pairs = [
            pair
            for concept in run.policy.erase
            for pair in self._in_turn(run, concept, concept.neutral_pairs(self.contexts))
        ]
        drawn = self._trajectories_of(run, "erased", pairs, [anchor for _, anchor in pairs])
        away = drawn.conditional - drawn.anchor
        return _rows(run, pairs, drawn, drawn.anchor - self.negative_guidance * away)

    def _taken_out(self, run: Run) -> "TrajectoryExamples":
        """Every latent of the trajectories of ``erase_from``, with its target.

        A trajectory's targets move away from one concept. Where several concepts share a prompt,
        they move further by that factor, so that their mean moves away from all of them.
        """
        rows = [
            ((prompt, phrase), concept.replacement)
            for concept, prompt in self._sources(run.policy)
            for phrase in self._in_turn(run, concept, concept.phrases)
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

    def _kept(self, run: Run, prompts: Sequence[str]) -> "TrajectoryExamples":
        """Every latent of the kept prompts' trajectories, with the base's prediction as target."""
        count = len(run.policy.erase) * self.trajectories
        order = torch.randperm(len(prompts), generator=generator(run.seed, "esd pairs")).tolist()
        pairs = [(prompts[order[at % len(prompts)]],) * 2 for at in range(count)]
        drawn = self._trajectories_of(run, "kept", pairs, ())
        return _rows(run, pairs, drawn, drawn.conditional)

    def _in_turn(self, run: Run, concept: Concept, items: Sequence[Spread]) -> list[Spread]:
        """What each trajectory of a concept starts from."""
        draws = generator(run.seed, "esd pairs")
        return wordings_in_turn(concept, items, self.trajectories, draws)

    def _trajectories_of(
        self, run: Run, name: str, pairs: Sequence[tuple[str, str]], anchors: Sequence[str]
    ) -> Trajectories:
        """A trajectory of the first prompt of each pair; its seed depends on the whole pair."""
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
    """One for each trajectory."""
    target: Tensor

    def some(self, draws: torch.Generator, count: int) -> Batch:
        """Random examples."""
        size = self.timestep.numel()
        return self.rows([int(torch.randint(size, (), generator=draws)) for _ in range(count)])

    def rows(self, numbers: Sequence[int]) -> Batch:
        """The examples with these numbers, counted trajectory by trajectory."""
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
    """Every latent of all trajectories, with the condition of its pair's first prompt."""
    condition = run.model.condition([prompt for prompt, _ in pairs])
    timestep = drawn.timesteps.expand(len(pairs), -1)
    return TrajectoryExamples(drawn.latents, timestep, condition, target.float())


class ExamplePool(NamedTuple):
    """Examples of erased prompts, and of prompts to keep, if any."""

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
