"""The released ESD programs: what each of them trains, draws, evaluates and aims for.

    variant         trained on   latents drawn by            noise of the latents
    compvis         c            the student for c           up to 58 timesteps too little
    alt             erase_from   the student for c           19 timesteps too little
    diffusers-sd    erase_from   the teacher for erase_from  right for their timestep
    diffusers-sdxl  erase_from   the teacher for erase_from  right, but not scaled for the UNet
    trainer-2026    erase_from   the teacher for erase_from  right for their timestep

``trainer-2026`` is the trainer of 2026 on Stable Diffusion. It differs from ``diffusers-sd`` in
that latents have the model's own size. A negative guidance of 2 in the last three means 1 in the
others: see ``EsdProgram.target``. All compare raw answers of the UNet, whether noise or ``v``.
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

EsdVariant = Literal["compvis", "alt", "diffusers-sd", "diffusers-sdxl", "trainer-2026"]

_DIFFUSERS = {
    "esd-x": "layers & cross_attention",
    "esd-x-strict": "layers & cross_attention.kv",
    "esd-u": "layers - cross_attention",
    "esd-all": "layers",
}
"""What ``diffusers-sd`` and the trainer of 2026 train."""

SELECTIONS: dict[EsdVariant, dict[str, str]] = {
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
"""What each released program trains, by the name on its command line."""


class Defaults(NamedTuple):
    """Defaults of a released program."""

    train_method: str
    iterations: int
    lr: float
    negative_guidance: float
    start_guidance: float = 3.0


DEFAULTS: dict[EsdVariant, Defaults] = {
    "compvis": Defaults("xattn", 1000, 1e-5, 1.0),
    "alt": Defaults("full", 200, 2e-5, 2.0),
    "diffusers-sd": Defaults("esd-x", 200, 5e-5, 2.0),
    "diffusers-sdxl": Defaults("esd-x", 200, 2e-4, 1.0, 2.0),
    "trainer-2026": Defaults("esd-x", 200, 5e-5, 2.0),
}


def parameters(model: Model, variant: EsdVariant, train_method: str) -> tuple[str, ...]:
    """The parameters that a released program trains under this name; none for unknown names."""
    return model.parameters(SELECTIONS[variant].get(train_method, "layers - all"))


@dataclass(frozen=True)
class EsdProgram:
    """One of the released programs with the settings of a run."""

    variant: EsdVariant
    steps: int
    """Steps of a whole trajectory."""
    start_guidance: float
    negative_guidance: float

    def batches(
        self, run: Run, pairs: Sequence[tuple[str, str]], numbers: Iterable[int]
    ) -> Iterator[Batch]:
        """A new partial denoising for each step, one latent at a time.

        ``pairs`` are concepts with the prompts to train on; each step uses a random one.
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
        """The conditions of the trained prompt, the concept and the empty prompt."""
        texts = {"condition": prompt, "erase": concept, "empty": ""}
        return {key: model.condition([text]) for key, text in texts.items()}

    def timestep(self, model: Model, stop: int, offset: int = 0) -> Tensor:
        """The timestep, ``[1]``, at which latents that stopped at ``stop`` are evaluated."""
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
        """Partly denoised latents: the program's sampler runs from ``noise`` to ``stop``.

        ``stop`` counts steps. Only in ``compvis`` it is the noise level, from low to high, and the
        noisiest step never runs.
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
        """``base - eta (eps*(c) - eps*(""))``; the base differs between programs.

        compvis: the empty prompt. diffusers: the trained prompt. alt: the trained prompt, or the
        empty one without ``erase_from``.
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
        """The model's own shape; ``diffusers-sd`` doubles it (1024 pixels for a model of 512)."""
        channels, height, width = model.latent_shape
        factor = 2 if self.variant == "diffusers-sd" else 1
        return channels, factor * height, factor * width

    def _scheduler(self, model: Model) -> Any:
        make = native if self._by_teacher else ddim
        return make(model.process, self.steps)
