"""ESD: Erasing Concepts from Diffusion Models (Gandikota et al., ICCV 2023).

The UNet learns to predict, for the erased prompt c, the frozen model's noise pushed away from it:

    eps(x, t, c)  ->  eps*(x, t, a) - eta (eps*(x, t, c) - eps*(x, t, a))

with the anchor a (the empty prompt in the paper) and the latents x on denoising trajectories.

``corrected`` is the default: the frozen model draws whole trajectories once, in batches, every
latent of them can serve many steps, and the targets fall out on the way; words are erased inside
sentences too; and prompts to keep, if any are named, are taught to stay. ``original`` is one of
the released programs, with the sampler, timesteps, targets and parameters of each:

    variant         trained on   latents drawn by            latents are
    compvis         c            the student for c           up to 58 timesteps too clean
    alt             erase_from   the student for c           19 timesteps too clean
    diffusers-sd    erase_from   the teacher for erase_from  where their timestep says

A negative guidance of 2 in ``diffusers-sd`` is 1 in the others: see ``_released_target``.
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from expunge.concepts import Context, Policy
from expunge.errors import ExpungeError, Unsupported
from expunge.methods.base import Method
from expunge.models import Model
from expunge.models.roles import Rule, matching
from expunge.progress import track
from expunge.seeding import generator
from expunge.training.student import Student
from expunge.training.trajectories import Step, ddim, denoise, native

Variant = Literal["compvis", "alt", "diffusers-sd", "diffusers-sdxl"]
Batch = dict[str, Tensor]

ROLES = {
    "x": "cross_attention",
    "x-strict": "cross_attention.kv",
    "u": "not_cross_attention",
    "selfattn": "self_attention",
    "full": "all",
}
"""Parameter groups of the corrected method."""


def _weighted(rule: Rule) -> Rule:
    """``rule`` for linear and convolution modules only, as the diffusers programs select."""
    return lambda name, module: isinstance(module, nn.Linear | nn.Conv2d) and rule(name, module)


def _named(*parts: str) -> Rule:
    return lambda name, _: any(part in name for part in parts)


def _without(*starts: str) -> Rule:
    return lambda name, _: not name.startswith(starts)


_OUTPUT = ("conv_out.", "conv_norm_out.")

RELEASED_RULES: dict[Variant, dict[str, Rule]] = {
    "compvis": {
        "xattn": _named(".attn2."),
        "noxattn": lambda name, module: (
            ".attn2." not in name and _without(*_OUTPUT, "time_embedding.")(name, module)
        ),
        "selfattn": _named(".attn1."),
        "full": _named(""),
        "notime": _without(*_OUTPUT, "time_embedding."),
        "xlayer": lambda name, _: (
            ".attn2." in name
            and name.startswith(("up_blocks.2.attentions.0.", "up_blocks.2.attentions.2."))
        ),
        "selflayer": lambda name, _: (
            ".attn1." in name
            and name.startswith(("down_blocks.1.attentions.0.", "down_blocks.2.attentions.0."))
        ),
    },
    "alt": {
        "xattn": _weighted(_named("attn2")),
        "noxattn": _weighted(lambda name, _: "attn2" not in name),
        "selfattn": _weighted(_named("attn1")),
        "full": _weighted(_named("")),
        "xattn-strict": lambda name, _: False,
    },
    "diffusers-sd": {
        "esd-x": _weighted(_named("attn2")),
        "esd-x-strict": _weighted(_named("attn2.to_k", "attn2.to_v")),
        "esd-u": _weighted(lambda name, _: "attn2" not in name),
        "esd-all": _weighted(_named("")),
    },
    "diffusers-sdxl": {
        "esd-x": _weighted(_named("attn2")),
        "esd-x-strict": _weighted(_named("attn2.to_k", "attn2.to_v")),
        "esd-u": _weighted(
            lambda name, _: "attn2" not in name and "emb" not in name and "block" in name
        ),
        "esd-all": _weighted(lambda name, _: "emb" not in name and "block" in name),
    },
}
"""What each released program trains, by the name its command line gives it."""


class Released(NamedTuple):
    """Defaults of a released program."""

    train_method: str
    iterations: int
    lr: float
    negative_guidance: float
    size: int
    """Side of its pictures in units of Stable Diffusion 1's own 512 pixels."""


RELEASED: dict[Variant, Released] = {
    "compvis": Released("xattn", 1000, 1e-5, 1.0, 1),
    "alt": Released("full", 200, 2e-5, 2.0, 1),
    "diffusers-sd": Released("esd-x", 200, 5e-5, 2.0, 2),
    "diffusers-sdxl": Released("esd-x", 200, 2e-4, 1.0, 2),
}


def released_parameters(unet: nn.Module, variant: Variant, train_method: str) -> tuple[str, ...]:
    """What a released program trains under this name; nothing for a name it doesn't know."""
    rule = RELEASED_RULES[variant].get(train_method)
    return matching(unet, rule) if rule else ()


class ESD(Method):
    """Fine-tuning away from the concept, with negative guidance as the target."""

    name: ClassVar[str] = "esd"
    title: ClassVar[str] = "Erased Stable Diffusion"
    year: ClassVar[int] = 2023
    url: ClassVar[str] = "https://arxiv.org/abs/2303.07345"
    shape: ClassVar[Literal["solve", "train"]] = "train"

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

    @model_validator(mode="before")
    @classmethod
    def _released_defaults(cls, values: Any) -> Any:
        """An original run starts from its program's defaults."""
        if not isinstance(values, dict) or values.get("fidelity") != "original":
            return values
        variant = values.get("variant") or "compvis"
        if variant not in RELEASED:
            return values  # the field's own check says what is wrong
        train_method, iterations, lr, negative_guidance, _ = RELEASED[variant]
        return {
            "variant": variant,
            "train_method": train_method,
            "iterations": iterations,
            "lr": lr,
            "negative_guidance": negative_guidance,
            "batch_size": 1,
            **values,
        }

    @model_validator(mode="after")
    def _consistent(self) -> "ESD":
        if self.fidelity == "corrected" and self.variant:
            raise ValueError('variant: only with fidelity="original"')
        if self.fidelity == "corrected" and self.train_method not in ROLES:
            raise ValueError(f"train_method: choose one of {', '.join(ROLES)}")
        if self.variant and self.batch_size != 1:
            raise ValueError("batch_size: the released programs train on one latent at a time")
        return self

    def parameters(self, model: Model) -> tuple[str, ...]:
        if self.variant is None:
            return model.select(ROLES[self.train_method])
        names = released_parameters(model.unet, self.variant, self.train_method)
        if not names:
            known = ", ".join(RELEASED_RULES[self.variant])
            raise ExpungeError(
                f"train_method {self.train_method!r} selects nothing in {self.variant} "
                f"(it knows {known})"
            )
        return names

    def batches(
        self, model: Model, policy: Policy, student: Student, seed: int, start: int
    ) -> Iterator[Batch]:
        if self.variant is not None:
            yield from self._released_batches(model, policy, student, seed, start)
            return
        table = self._table(model, policy, seed)
        kept = round(self.batch_size * self.keep_share) if table.kept else 0
        for iteration in range(start, self.iterations):
            yield table.draw(generator(seed, "esd batch", iteration), self.batch_size, kept)

    def loss(self, student: Student, batch: Mapping[str, Tensor]) -> Tensor:
        """Mean squared distance of the student's prediction from the target."""
        latents, timestep = batch["latents"], batch["timestep"]
        target = batch["target"] if "target" in batch else self._released_target(student, batch)
        predicted = student.predict(latents, timestep, batch["embeddings"])
        return torch.nn.functional.mse_loss(predicted, target)

    # --- corrected: trajectories drawn once, every latent of them reused

    def _table(self, model: Model, policy: Policy, seed: int) -> "Table":
        erased = [
            (pair.erase, pair.anchor if concept.replacement else "")
            for concept in policy.erase
            for pair in concept.pairs(self.contexts)
        ]
        kept = [(prompt, prompt) for prompt in policy.kept if self.keep_share]
        return Table(
            self._rows(model, erased, self.negative_guidance, seed),
            self._rows(model, kept, 0.0, seed) if kept else None,
        )

    def _rows(self, model: Model, pairs: list[tuple[str, str]], eta: float, seed: int) -> "Rows":
        """Every latent of ``trajectories`` trajectories, with its target."""
        chosen = [pairs[index % len(pairs)] for index in range(self.trajectories)]
        parts: list[Rows] = []
        bar = track(range(0, len(chosen), 16), "trajectories", total=-(-len(chosen) // 16))
        for start in bar:
            block = list(enumerate(chosen))[start : start + 16]
            noise = [_noise(model, seed, "trajectory", *pair, index) for index, pair in block]
            prompts = model.encode([prompt for _, (prompt, _) in block])
            anchors = model.encode([anchor for _, (_, anchor) in block])
            scheduler = ddim(model.pipe.scheduler, self.num_inference_steps)
            for step in denoise(
                model.predict_noise,
                scheduler,
                torch.stack(noise) * scheduler.init_noise_sigma,
                prompts,
                model.encode([""]).expand_as(prompts),
                guidance_scale=self.start_guidance,
                timesteps=scheduler.timesteps,
            ):
                target = self._target(model, step, prompts, anchors, eta)
                parts.append(Rows(step.latents, step.timestep, prompts, target))
        return Rows(*(torch.cat(column) for column in zip(*parts, strict=True)))

    @torch.no_grad()
    def _target(
        self, model: Model, step: Step, prompts: Tensor, anchors: Tensor, eta: float
    ) -> Tensor:
        """``eps*(a) - eta (eps*(c) - eps*(a))``; guidance has evaluated most of it already."""
        if torch.equal(anchors, prompts):
            return step.conditional.float()
        anchor = step.unconditional
        if anchor is None or not torch.equal(anchors, model.encode([""]).expand_as(anchors)):
            anchor = model.predict_noise(step.latents, step.timestep, anchors)
        return (anchor - eta * (step.conditional - anchor)).float()

    # --- original: what the released programs do

    def _released_batches(
        self, model: Model, policy: Policy, student: Student, seed: int, start: int
    ) -> Iterator[Batch]:
        for iteration in range(start, self.iterations):
            draws = generator(seed, "esd", iteration)
            concept = policy.erase[_draw(draws, 0, len(policy.erase))]
            steps = self.num_inference_steps
            low, high = (1, steps - 1) if self.variant == "alt" else (0, steps)
            stop = _draw(draws, low, high)
            factor = RELEASED[self.variant or "compvis"].size
            noise = _noise(model, seed, "esd noise", iteration, factor=factor)[None]
            yield {
                "latents": self.partial(student, concept.target, noise, stop),
                "timestep": self.released_timestep(model, stop, _draw(draws, 0, 1000 // steps)),
                **self.released_embeddings(model, concept.target),
            }

    def released_embeddings(self, model: Model, concept: str) -> Batch:
        """Embeddings of the trained prompt, the concept and the empty prompt, ``[1, ...]``."""
        trained = concept if self.variant == "compvis" else self.erase_from or concept
        return {
            "embeddings": model.encode([trained]),
            "erase": model.encode([concept]),
            "empty": model.encode([""]),
        }

    def released_timestep(self, model: Model, stop: int, offset: int = 0) -> Tensor:
        """The timestep, ``[1]``, at which a program looks at latents that stopped at ``stop``."""
        stride = 1000 // self.num_inference_steps
        if self.variant == "compvis":
            timestep = stride * stop + offset
        elif self.variant == "alt":
            timestep = 1000 - stride * stop
        else:
            timestep = int(self._scheduler(model).timesteps[stop])
        return torch.tensor([timestep], device=model.device)

    def partial(
        self,
        student: Student,
        concept: str,
        noise: Tensor,
        stop: int,
        guidance_scale: float | None = None,
    ) -> Tensor:
        """A program's partly denoised latents: its sampler from ``noise`` until ``stop``.

        ``stop`` counts steps in ``alt`` and ``diffusers-sd``; in ``compvis`` it is the noise
        level, the last the noisiest, and the noisiest step itself never runs.
        """
        model = student.model
        scheduler = self._scheduler(model)
        first, last = 0, stop
        if self.variant == "compvis":
            first, last = 1, self.num_inference_steps - max(stop - 1, 0)
        prompt = self.erase_from or concept if self.variant == "diffusers-sd" else concept
        predict = student.teach if self.variant == "diffusers-sd" else student.predict
        latents: Tensor = noise * scheduler.init_noise_sigma
        for step in denoise(
            predict,
            scheduler,
            latents,
            model.encode([prompt]),
            model.encode([""]),
            guidance_scale=self.start_guidance if guidance_scale is None else guidance_scale,
            timesteps=scheduler.timesteps[first:last],
        ):
            latents = step.after
        return latents

    def _scheduler(self, model: Model) -> Any:
        if self.variant == "diffusers-sdxl":
            raise Unsupported("esd: the SDXL program is not supported yet")
        make = native if self.variant == "diffusers-sd" else ddim
        return make(model.pipe.scheduler, self.num_inference_steps)

    def _released_target(self, student: Student, batch: Mapping[str, Tensor]) -> Tensor:
        """``base - eta (eps*(c) - eps*(""))``; what the base is differs by program.

        compvis: the empty prompt. diffusers-sd: the trained prompt. alt: the trained prompt, but
        the empty one when nothing was said about ``erase_from``.
        """
        latents, timestep = batch["latents"], batch["timestep"]
        erased, empty = (student.teach(latents, timestep, batch[k]) for k in ("erase", "empty"))
        same = torch.equal(batch["embeddings"], batch["erase"])
        if self.variant == "compvis" or (self.variant == "alt" and same):
            base = empty
        else:
            base = student.teach(latents, timestep, batch["embeddings"])
        return base - self.negative_guidance * (erased - empty)


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


def _draw(draws: torch.Generator, low: int, high: int) -> int:
    """An integer from ``low`` to ``high - 1``."""
    return int(torch.randint(low, high, (), generator=draws))


def _noise(model: Model, seed: int, *names: str | int, factor: int = 1) -> Tensor:
    """Normal noise ``[channels, height, width]``, drawn in float32 on the CPU."""
    channels, height, width = model.latent_shape
    shape = (channels, factor * height, factor * width)
    noise = torch.randn(shape, generator=generator(seed, *names))
    return noise.to(model.device, model.dtype)
