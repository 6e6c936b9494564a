"""ESD: Erasing Concepts from Diffusion Models (Gandikota et al., ICCV 2023).

The UNet learns to predict, for the erased prompt c, the frozen model's noise pushed away from it:

    eps(x, t, c)  ->  eps*(x, t, a) - eta (eps*(x, t, c) - eps*(x, t, a))

with the anchor a (the empty prompt in the paper) and the latents x on denoising trajectories.

``corrected`` is the default: the frozen model draws whole trajectories once, in batches, every
latent of them can serve many steps, and the targets fall out on the way; words are erased inside
sentences too; and what is to be kept, if anything is named, is taught to stay. ``original`` is
one of the released programs, quirks and all (``esd_programs.py``).
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor

from expunge.algebra.ridge import gram
from expunge.concepts import Context, Policy
from expunge.errors import ExpungeError
from expunge.methods.base import Trained
from expunge.methods.esd_programs import DEFAULTS, RULES, Batch, Program, Variant, parameters
from expunge.models import Model
from expunge.seeding import derive, generator
from expunge.training.run import Run
from expunge.training.student import Student
from expunge.training.trajectories import trajectories

ROLES = {
    "x": "cross_attention",
    "x-strict": "cross_attention.kv",
    "u": "not_cross_attention",
    "selfattn": "self_attention",
    "full": "all",
}
"""Parameter groups of the corrected method."""


class ESD(Trained):
    """Fine-tuning away from the concept, with negative guidance as the target."""

    name: ClassVar[str] = "esd"
    title: ClassVar[str] = "Erased Stable Diffusion"
    year: ClassVar[int] = 2023
    url: ClassVar[str] = "https://arxiv.org/abs/2303.07345"

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
    erase_from: str | None = None
    """Prompt out of which the concept is taken, in the programs that know it."""
    contexts: tuple[Context, ...] = ()
    """Sentences with ``{}`` for the concept; by default the words alone and the templates."""
    batch_size: int = Field(4, ge=1)
    """Latents in one step."""
    trajectories: int = Field(16, ge=1)
    """Trajectories of the erased prompts; as many again of the prompts to keep, if any."""
    keep_share: float = Field(0.5, ge=0, lt=1)
    """Part of a batch that comes from the prompts to keep, if any are named."""
    preserve_scale: float = Field(1.0, ge=0)
    """Weight of the relative change of the keys and values of the prompts to keep."""

    @model_validator(mode="before")
    @classmethod
    def _released_defaults(cls, values: Any) -> Any:
        """An original run starts from its program's defaults."""
        if not isinstance(values, dict) or values.get("fidelity") != "original":
            return values
        variant = values.get("variant") or "compvis"
        defaults = DEFAULTS[variant]._asdict() if variant in DEFAULTS else {}
        return {"variant": variant, **defaults, **values}

    @model_validator(mode="after")
    def _consistent(self) -> "ESD":
        if self.fidelity == "corrected" and self.variant:
            raise ValueError('variant: only with fidelity="original"')
        if self.fidelity == "corrected" and self.train_method not in ROLES:
            raise ValueError(f"train_method: choose one of {', '.join(ROLES)}")
        if self.fidelity == "corrected" and self.erase_from:
            raise ValueError('erase_from: only with fidelity="original"; use contexts here')
        if self.variant and self.contexts:
            raise ValueError('contexts: only with fidelity="corrected"')
        for name in ("trajectories", "keep_share", "preserve_scale") if self.variant else ():
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f'{name}: only with fidelity="corrected"')
        if self.variant and self.batch_size != 1:
            raise ValueError("batch_size: the released programs train on one latent at a time")
        return self

    def parameters(self, model: Model) -> tuple[str, ...]:
        if self.variant is None:
            return model.select(ROLES[self.train_method])
        names = parameters(model.unet, self.variant, self.train_method)
        if not names:
            known = ", ".join(RULES[self.variant])
            raise ExpungeError(
                f"train_method {self.train_method!r} selects nothing in {self.variant} "
                f"(it knows {known})"
            )
        return names

    @property
    def program(self) -> Program | None:
        """The released program that an original run follows."""
        if self.variant is None:
            return None
        return Program(
            self.variant,
            self.num_inference_steps,
            self.start_guidance,
            self.negative_guidance,
            self.erase_from,
        )

    def batches(self, run: Run, numbers: Iterable[int]) -> Iterator[Batch]:
        if self.program:
            yield from self.program.batches(run, numbers)
            return
        table = self._table(run)
        kept = round(self.batch_size * self.keep_share) if table.kept else 0
        words = self._kept_words(run.model, run.policy)
        for number in numbers:
            batch = table.draw(generator(run.seed, "esd batch", number), self.batch_size, kept)
            yield {**batch, **words}

    def loss(self, student: Student, batch: Mapping[str, Tensor]) -> Tensor:
        """Mean squared distance of the student's prediction from the target.

        With prompts to keep, also ``preserve_scale`` times how far their keys and values moved.
        """
        latents, timestep = batch["latents"], batch["timestep"]
        target = self.program.target(student, batch) if self.program else batch["target"]
        predicted = student.predict(latents, timestep, batch["embeddings"])
        loss = torch.nn.functional.mse_loss(predicted, target)
        if "kept_words" in batch:
            loss = loss + self.preserve_scale * student.projection_change(batch["kept_words"])
        return loss

    def _kept_words(self, model: Model, policy: Policy) -> dict[str, Tensor]:
        """The Gram matrix of the embeddings to keep, ``[width, width]``, if there are any."""
        prompts = policy.kept_prompts(self.contexts) if self.preserve_scale else ()
        if not prompts:
            return {}
        blocks = (model.encode(prompts[at : at + 64]) for at in range(0, len(prompts), 64))
        total = torch.stack([gram(block) for block in blocks]).sum(0)
        return {"kept_words": (total / len(prompts)).float()}

    def _table(self, run: Run) -> "Table":
        erased = [
            (pair.erase, pair.anchor if concept.replacement else "")
            for concept in run.policy.erase
            for pair in concept.pairs(self.contexts)
        ]
        kept = [(p, p) for p in run.policy.kept_prompts(self.contexts) if self.keep_share]
        return Table(
            self._rows(run, "erased", erased, self.negative_guidance),
            self._rows(run, "kept", kept, None) if kept else None,
        )

    def _rows(self, run: Run, name: str, pairs: list[tuple[str, str]], eta: float | None) -> "Rows":
        """Every latent of ``trajectories`` trajectories, with its target."""
        order = torch.randperm(len(pairs), generator=generator(run.seed, "esd pairs")).tolist()
        chosen = [pairs[order[index % len(pairs)]] for index in range(self.trajectories)]
        prompts, anchors = zip(*chosen, strict=True)
        seeds = [derive(run.seed, "trajectory", *pair, i) for i, pair in enumerate(chosen)]
        drawn = trajectories(
            run,
            name,
            prompts,
            seeds,
            anchors=() if eta is None else anchors,
            steps=self.num_inference_steps,
            guidance_scale=self.start_guidance,
        )
        target = drawn.conditional
        if eta is not None:
            target = drawn.anchor - eta * (drawn.conditional - drawn.anchor)
        count, steps = drawn.latents.shape[:2]
        embeddings = run.model.encode(prompts).repeat_interleave(steps, 0)
        latents, target = drawn.latents.flatten(0, 1), target.flatten(0, 1).float()
        return Rows(latents, drawn.timesteps.repeat(count), embeddings, target)


class Rows(NamedTuple):
    """Training examples, one a row."""

    latents: Tensor
    timestep: Tensor
    embeddings: Tensor
    target: Tensor


class Table(NamedTuple):
    """Examples of erased prompts, and of prompts to keep if there are any."""

    erased: Rows
    kept: Rows | None

    def draw(self, draws: torch.Generator, size: int, kept: int) -> Batch:
        """A batch of ``size`` rows, ``kept`` of them of prompts to keep."""
        parts = [self.erased._asdict()] * (size - kept)
        parts += [self.kept._asdict()] * kept if self.kept else []
        at = [int(torch.randint(len(part["latents"]), (), generator=draws)) for part in parts]
        return {
            key: torch.stack([part[key][row] for part, row in zip(parts, at, strict=True)])
            for key in Rows._fields
        }
