"""The released ESD programs, one by one: what each trains, draws, looks at and aims for.

They differ in::

    variant         trained on   latents drawn by            latents are
    compvis         c            the student for c           up to 58 timesteps too clean
    alt             erase_from   the student for c           19 timesteps too clean
    diffusers-sd    erase_from   the teacher for erase_from  where their timestep says
    diffusers-sdxl  erase_from   the teacher for erase_from  there, but not scaled for the UNet
    trainer-2026    erase_from   the teacher for erase_from  where their timestep says

``trainer-2026`` is what the trainer of 2026 does with Stable Diffusion: ``diffusers-sd``, but with
latents of the model's own size. A negative guidance of 2 in the last three is 1 in the others: see
``EsdProgram.target``. All compare raw answers of the UNet, be they noise or ``v``.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from expunge.method.batch import Batch
from expunge.method.run import Run
from expunge.method.student import Student
from expunge.models import Condition, Model
from expunge.seeding import generator, integer
from expunge.training.trajectories import ddim, denoise, native

Variant = Literal["compvis", "alt", "diffusers-sd", "diffusers-sdxl", "trainer-2026"]

_DIFFUSERS = {
    "esd-x": "layers & cross_attention",
    "esd-x-strict": "layers & cross_attention.kv",
    "esd-u": "layers - cross_attention",
    "esd-all": "layers",
}
"""What ``diffusers-sd`` trains, and the trainer of 2026."""

SELECTIONS: dict[Variant, dict[str, str]] = {
    "compvis": {
        "xattn": "cross_attention",
        "noxattn": "all - cross_attention - output - time",
        "selfattn": "self_attention",
        "full": "all",
        "notime": "all - output - time",
        "xlayer": "up.2.first | up.2.last & cross_attention",
        "selflayer": "down.1.first | down.2.first & self_attention",
    },
    "alt": {
        "xattn": "layers & cross_attention",
        "noxattn": "layers - cross_attention",
        "selfattn": "layers & self_attention",
        "full": "layers",
        "xattn-strict": "layers - all",
    },
    "diffusers-sd": _DIFFUSERS,
    "diffusers-sdxl": {
        "esd-x": "layers & cross_attention",
        "esd-x-strict": "layers & cross_attention.kv",
        "esd-u": "layers & blocks - cross_attention - embeddings",
        "esd-all": "layers & blocks - embeddings",
    },
    "trainer-2026": _DIFFUSERS,
}
"""What each released program trains, by the name its command line gives it."""


class Defaults(NamedTuple):
    """What a released program does when nothing is said."""

    train_method: str
    iterations: int
    lr: float
    negative_guidance: float
    start_guidance: float = 3.0


DEFAULTS: dict[Variant, Defaults] = {
    "compvis": Defaults("xattn", 1000, 1e-5, 1.0),
    "alt": Defaults("full", 200, 2e-5, 2.0),
    "diffusers-sd": Defaults("esd-x", 200, 5e-5, 2.0),
    "diffusers-sdxl": Defaults("esd-x", 200, 2e-4, 1.0, 2.0),
    "trainer-2026": Defaults("esd-x", 200, 5e-5, 2.0),
}


def parameters(model: Model, variant: Variant, train_method: str) -> tuple[str, ...]:
    """What a released program trains under this name; nothing for a name it doesn't know."""
    return model.parameters(SELECTIONS[variant].get(train_method, "layers - all"))


@dataclass(frozen=True)
class EsdProgram:
    """One of the released programs with the settings of one run."""

    variant: Variant
    steps: int
    """Steps of a whole trajectory."""
    start_guidance: float
    negative_guidance: float

    def batches(
        self, run: Run, pairs: Sequence[tuple[str, str]], numbers: Iterable[int]
    ) -> Iterator[Batch]:
        """A new partial denoising for each step, one latent at a time.

        ``pairs`` are concepts with the prompts that are trained on; each step draws one of them.
        """
        model, student = run.model, run.student
        low, high = (1, self.steps - 1) if self.variant == "alt" else (0, self.steps)
        for number in numbers:
            draws = generator(run.seed, "esd", number)
            concept, prompt = pairs[integer(draws, 0, len(pairs))]
            stop = integer(draws, low, high)
            offset = integer(draws, 0, self._stride)
            noise = torch.randn((1, *self._latent_shape(model)), generator=draws)
            yield {
                "latents": self.latents(student, concept, prompt, noise.to(model.device), stop),
                "timestep": self.timestep(model, stop, offset),
                **self.conditions(model, concept, prompt),
            }

    def conditions(self, model: Model, concept: str, prompt: str) -> dict[str, Condition]:
        """Of the trained prompt, the concept and the empty prompt."""
        texts = {"condition": prompt, "erase": concept, "empty": ""}
        return {key: model.condition([text]) for key, text in texts.items()}

    def timestep(self, model: Model, stop: int, offset: int = 0) -> Tensor:
        """The timestep, ``[1]``, at which latents that stopped at ``stop`` are looked at."""
        if self.variant == "compvis":
            timestep = self._stride * stop + offset
        elif self.variant == "alt":
            timestep = 1000 - self._stride * stop
        else:
            timestep = int(self._scheduler(model).timesteps[stop])
        return torch.tensor([timestep], device=model.device)

    def latents(
        self,
        student: Student,
        concept: str,
        prompt: str,
        noise: Tensor,
        stop: int,
        guidance_scale: float | None = None,
    ) -> Tensor:
        """Partly denoised latents: the program's sampler from ``noise`` until ``stop``.

        ``stop`` counts steps; in ``compvis`` alone it is the noise level, the last the noisiest,
        and the noisiest step itself never runs.
        """
        model = student.model
        scheduler = self._scheduler(model)
        first, last = 0, stop
        if self.variant == "compvis":
            first, last = 1, self.steps - max(stop - 1, 0)
        latents: Tensor = noise * scheduler.init_noise_sigma
        for step in denoise(
            student.teach if self._by_teacher else student.predict,
            scheduler,
            latents,
            model.condition([prompt if self._by_teacher else concept]),
            model.unconditional(),
            guidance_scale=self.start_guidance if guidance_scale is None else guidance_scale,
            timesteps=scheduler.timesteps[first:last],
        ):
            latents = step.after
        return latents

    def target(self, student: Student, batch: Batch) -> Tensor:
        """``base - eta (eps*(c) - eps*(""))``; what the base is differs by program.

        compvis: the empty prompt. diffusers: the trained prompt. alt: the trained prompt, but the
        empty one when nothing was said about ``erase_from``.
        """
        latents, timestep = batch["latents"], batch["timestep"]
        erased, empty = (student.teach(latents, timestep, batch[k]) for k in ("erase", "empty"))
        same = torch.equal(batch["condition"].rows, batch["erase"].rows)
        if self.variant == "compvis" or (self.variant == "alt" and same):
            base = empty
        else:
            base = student.teach(latents, timestep, batch["condition"])
        return base - self.negative_guidance * (erased - empty)

    @property
    def _by_teacher(self) -> bool:
        return self.variant in ("diffusers-sd", "diffusers-sdxl", "trainer-2026")

    @property
    def _stride(self) -> int:
        return 1000 // self.steps

    def _latent_shape(self, model: Model) -> tuple[int, int, int]:
        """The model's own, doubled in ``diffusers-sd`` (1024 pixels for a model of 512)."""
        channels, height, width = model.latent_shape
        factor = 2 if self.variant == "diffusers-sd" else 1
        return channels, factor * height, factor * width

    def _scheduler(self, model: Model) -> Any:
        make = native if self._by_teacher else ddim
        return make(model.process, self.steps)
