"""What is attacked: a model with an edit, and what the attacker knows of the concept."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from expunge.attacks.known import Known, answers
from expunge.concepts import Concept
from expunge.detectors.critic import Critic
from expunge.edits.applied import shown
from expunge.edits.drawings import drawing
from expunge.edits.edit import Edit
from expunge.edits.gates import Gate, Opens
from expunge.edits.guards import Guard
from expunge.errors import ExpungeError, Unsupported
from expunge.models import Condition, Model
from expunge.models.sampling import Sampling
from expunge.prompts.lexicon import refused

T = TypeVar("T")


class Meter:
    """Counts how often a denoiser was called, by the pictures in its batches.

    A call with gradients counts three times, which is what it costs.
    """

    def __init__(self) -> None:
        self.calls = 0

    def count(self, pictures: int) -> None:
        self.calls += pictures * (3 if torch.is_grad_enabled() else 1)


@dataclass(frozen=True, eq=False)
class Target:
    """A model under attack; searches run inside ``deployed`` or ``ungated``.

    Raises:
        ExpungeError: a prompt or the concept is one that nobody may ask for.
    """

    model: Model
    """The base."""
    edit: Edit | None
    """What was done to it; ``None`` for the attack on the base, which is a control."""
    concept: Concept
    prompts: tuple[str, ...]
    """What asked the base for each picture."""
    known: Known
    sampling: Sampling
    critic: Critic | None = None
    """An image-text model with gradients that isn't the judge."""
    kept: tuple[str, ...] = ()
    """Prompts for what the edit should keep."""
    weights: Mapping[str, Tensor] | None = None
    """The denoiser's, where someone has changed them; then there is no edit beside them."""

    def __post_init__(self) -> None:
        aim = " ".join(self.concept.phrases)
        if any(
            refused({"aim": aim, "prompt": prompt}) for prompt in ("", *self.prompts, *self.kept)
        ):
            raise ExpungeError(
                f"{self.concept.target!r} with these prompts is refused: a sexual word beside a "
                "word for minors is never attacked, whatever it is for"
            )

    @cached_property
    def meter(self) -> Meter:
        return Meter()

    @cached_property
    def _made(self) -> dict[str, Any]:
        return {}

    def once(self, name: str, make: Callable[[], T]) -> T:
        """What ``make`` gives, made once for all searches of this target."""
        if name not in self._made:
            self._made[name] = make()
        found: T = self._made[name]
        return found

    @property
    def guarded(self) -> bool:
        """Whether answers count only under guidance."""
        return bool(self.edit and self.edit.guarded)

    @contextmanager
    def deployed(self) -> Iterator[None]:
        """Inside, the model is as whoever uses it meets it."""
        if self.weights is not None:
            with shown(self.model, self.weights):
                yield
            return
        with self.edit.applied(self.model) if self.edit else nullcontext():
            yield

    @contextmanager
    def undone(self) -> Iterator[None]:
        """The base, inside ``deployed``."""
        if self.edit:
            self.edit.revert(self.model)
        try:
            yield
        finally:
            if self.edit:
                self.edit.apply(self.model)

    @torch.no_grad()
    def base_answer(self, latents: Tensor, time: Tensor, picture: int) -> Tensor:
        """What the base answers for a picture's prompt, ``[batch, ...]``, inside ``deployed``.

        It isn't counted.
        """
        with self.undone():
            condition = self.model.condition([self.prompts[picture]]).expand(len(time))
            return answers(self.model, latents, time, condition)

    @property
    def gates(self) -> tuple[Opens, ...]:
        """Its gates.

        Raises:
            Unsupported: a gate doesn't say how far it opens.
        """
        parts = self.edit.components if self.edit else ()
        gates = [part.payload for part in parts if isinstance(part.payload, Gate)]
        if dumb := [gate for gate in gates if not isinstance(gate, Opens)]:
            raise Unsupported(f"gates of the form {dumb[0].form!r} don't say how far they open")
        return tuple(gate for gate in gates if isinstance(gate, Opens))

    @property
    def reads_tokens(self) -> bool:
        """Whether a guard refuses rows that no prompt has."""
        parts = self.edit.components if self.edit else ()
        guards = [part.payload for part in parts if isinstance(part.payload, Guard)]
        return any(guard.reads_tokens for guard in guards)

    @contextmanager
    def ungated(self) -> Iterator[None]:
        """Inside, what the edit does beside its gates is done: the model of a shut gate."""
        parts = tuple(
            part
            for part in (self.edit.components if self.edit else ())
            if not isinstance(part.payload, Gate)
        )
        with Edit(parts).applied(self.model) if parts else nullcontext():
            yield

    def answer(self, latents: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """What the model answers, as it counts when it draws, ``[batch, ...]``.

        Behind guards that is the guided answer, for they act under guidance alone, as in the middle
        of a drawing, where they are all at work.
        """
        if not self.guarded:
            return self.predict(latents, time, condition)
        with drawing(self.model, _all(latents), step=self.sampling.steps // 2):
            return self.guided(latents, time, condition)

    def wanted(self, points: Tensor) -> Tensor:
        """What the base answers at some points of ``known``, beside ``answer``."""
        known = self.known
        conditional, unconditional = known.conditional[points], known.unconditional[points]
        if not self.guarded:
            return conditional
        return unconditional + self.sampling.guidance_scale * (conditional - unconditional)

    def guided(self, latents: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """The guided answer, ``[batch, ...]``."""
        empty = self.model.unconditional().expand(len(latents))
        both = self.predict(
            torch.cat([latents, latents]), time.repeat(2), Condition.cat([empty, condition])
        )
        unconditional, conditional = both.chunk(2)
        return unconditional + self.sampling.guidance_scale * (conditional - unconditional)

    def predict(self, latents: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """The denoiser's answer; it is counted."""
        self.meter.count(len(latents))
        return self.model.predict(latents, time, condition)

    def rollout(
        self, noise: Tensor, condition: Condition, steps: int, scheduler: str = "ddim"
    ) -> Tensor:
        """Colours of pictures drawn from noise in few steps, with gradients.

        Args:
            noise: ``[pictures, channels, height, width]``.
            condition: of one prompt.
            steps: how many.
            scheduler: whose steps, as the model's process names it.

        Returns:
            ``[pictures, 3, height, width]`` in -1..1.
        """
        rule = self.model.process.scheduler(scheduler, steps)
        latents = noise * rule.init_noise_sigma
        asked = condition.expand(len(noise))
        with drawing(self.model, _all(noise)):
            for timestep in rule.timesteps:
                scaled = rule.scale_model_input(latents, timestep)
                time = timestep.to(noise.device).expand(len(noise))
                answer = self.guided(scaled, time, asked)
                latents = rule.step(answer, timestep, latents, return_dict=False)[0]
        return self.model.colours(latents)


def _all(latents: Tensor) -> Tensor:
    """That guidance draws each of these pictures, ``[pictures]``."""
    return torch.ones(len(latents), dtype=torch.bool, device=latents.device)
