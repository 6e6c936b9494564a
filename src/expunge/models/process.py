"""How latents and noise mix over time, and what the denoiser is asked for.

Of clean latents ``x`` and noise ``e``, a *diffusion* with noise levels ``a_t`` makes::

    x_t = sqrt(a_t) x + sqrt(1 - a_t) e

(Ho et al., 2020). Its denoiser predicts the noise ``e``, or ``v = sqrt(a_t) e - sqrt(1 - a_t) x``
(Salimans and Ho, 2022). A *flow* (Lipman et al., 2023) makes ``x_t = (1 - s_t) x + s_t e`` and
predicts the velocity ``e - x``.

All latents are ``[batch, channels, height, width]``, times ``[batch]``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor

from expunge.errors import ExpungeError, Unsupported

Prediction = Literal["noise", "v", "velocity"]
"""What a denoiser answers."""


class Process(Protocol):
    """The noise of a family of models."""

    @property
    def prediction(self) -> Prediction:
        """What the denoiser answers."""
        ...

    @property
    def times(self) -> int:
        """How many times the model was trained at; they count from 0, the cleanest."""
        ...

    def mix(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Latents as noisy as at ``time``."""
        ...

    def target(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """What the denoiser should answer for ``mix(clean, noise, time)``."""
        ...

    def noise(self, answer: Tensor, latents: Tensor, time: Tensor) -> Tensor:
        """The noise in ``latents`` that an answer of the denoiser amounts to."""
        ...

    def clean(self, answer: Tensor, latents: Tensor, time: Tensor) -> Tensor:
        """The clean latents that an answer of the denoiser amounts to."""
        ...

    def scheduler(self, name: str, steps: int, **options: Any) -> Any:
        """A fresh diffusers scheduler with this process's noise levels, set to ``steps``.

        ``options`` replace entries of its configuration.

        Raises:
            ExpungeError: it has no such scheduler, or there are more steps than times.
        """
        ...


def _fresh(native: Any, kind: type, steps: int, options: Mapping[str, Any]) -> Any:
    count = native.config.num_train_timesteps
    if steps > count:
        raise ExpungeError(f"{steps} steps: the model has only {count} timesteps")
    scheduler = kind.from_config(native.config, **options)  # type: ignore[attr-defined]
    scheduler.set_timesteps(steps)
    return scheduler


def _column(values: Tensor, latents: Tensor) -> Tensor:
    return values.to(latents).view(-1, *[1] * (latents.ndim - 1))


@dataclass(frozen=True)
class Diffusion:
    """Gaussian diffusion in discrete times, with the noise levels of a diffusers scheduler."""

    native: Any
    """The pipeline's own scheduler."""

    SCHEDULERS: ClassVar[Mapping[str, str]] = {
        "ddim": "DDIMScheduler",
        "pndm": "PNDMScheduler",
        "lms": "LMSDiscreteScheduler",
        "euler": "EulerDiscreteScheduler",
        "dpm++": "DPMSolverMultistepScheduler",
    }

    @property
    def prediction(self) -> Prediction:
        kinds: dict[str, Prediction] = {"epsilon": "noise", "v_prediction": "v"}
        kind = self.native.config.prediction_type
        if kind not in kinds:
            raise Unsupported(f"a denoiser that predicts {kind!r}; known are {', '.join(kinds)}")
        return kinds[kind]

    @property
    def times(self) -> int:
        return len(self.levels)

    @cached_property
    def levels(self) -> Tensor:
        """``a_t``, ``[times]`` float32."""
        levels: Tensor = self.native.alphas_cumprod
        return levels

    def _level(self, latents: Tensor, time: Tensor) -> Tensor:
        return _column(self.levels.to(latents)[time.to(latents.device)], latents)

    def mix(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        level = self._level(clean, time)
        return level.sqrt() * clean + (1 - level).sqrt() * noise

    def target(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        return noise if self.prediction == "noise" else self.mix(noise, -clean, time)

    def noise(self, answer: Tensor, latents: Tensor, time: Tensor) -> Tensor:
        if self.prediction == "noise":
            return answer
        level = self._level(latents, time)
        return level.sqrt() * answer + (1 - level).sqrt() * latents

    def clean(self, answer: Tensor, latents: Tensor, time: Tensor) -> Tensor:
        level = self._level(latents, time)
        if self.prediction == "v":
            return level.sqrt() * latents - (1 - level).sqrt() * answer
        return (latents - (1 - level).sqrt() * answer) / level.sqrt()

    def scheduler(self, name: str, steps: int, **options: Any) -> Any:
        if name == "native":
            return _fresh(self.native, type(self.native), steps, options)
        if name not in self.SCHEDULERS:
            known = ", ".join((*self.SCHEDULERS, "native"))
            raise ExpungeError(f"scheduler {name!r}: a diffusion has {known}")
        if name == "ddim":
            # Without this entry DDIM clips to [-1, 1], which is meant for pixels, not for latents.
            options = {"clip_sample": False, **options}
        import diffusers

        return _fresh(self.native, getattr(diffusers, self.SCHEDULERS[name]), steps, options)


@dataclass(frozen=True)
class Flow:
    """A straight path from picture to noise; times are 1000 times the share of noise."""

    native: Any
    """The pipeline's own scheduler, a ``FlowMatchEulerDiscreteScheduler``."""

    @property
    def prediction(self) -> Prediction:
        return "velocity"

    @property
    def times(self) -> int:
        return int(self.native.config.num_train_timesteps)

    def _share(self, latents: Tensor, time: Tensor) -> Tensor:
        """``s_t``, the share of noise."""
        return _column(time.double() / self.times, latents)

    def mix(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        share = self._share(clean, time)
        return (1 - share) * clean + share * noise

    def target(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        return noise - clean

    def noise(self, answer: Tensor, latents: Tensor, time: Tensor) -> Tensor:
        return latents + (1 - self._share(latents, time)) * answer

    def clean(self, answer: Tensor, latents: Tensor, time: Tensor) -> Tensor:
        return latents - self._share(latents, time) * answer

    def scheduler(self, name: str, steps: int, **options: Any) -> Any:
        if name not in ("euler", "native"):
            raise ExpungeError(f"scheduler {name!r}: a flow has euler, native")
        return _fresh(self.native, type(self.native), steps, options)
