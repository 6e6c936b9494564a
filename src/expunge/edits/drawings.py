"""Drawings: batches of pictures on their way from noise, as guards see them.

A guard may do something else in the tenth step than in the first, and may remember what it did. So
it is told the step, and what it remembers lives in the drawing: another batch, in another thread
or after this one, begins with nothing.

Whoever draws says so with ``drawing``. Calls of the denoiser from elsewhere, such as a pipeline's,
belong to one drawing as long as they come from one thread with the same condition, the very tensor
with the numbers that it had, and time never rises.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from expunge.edits.reading import Reader
from expunge.models import Condition, Model
from expunge.models.calls import DenoiserCall
from expunge.models.skips import Reroute

T = TypeVar("T")


class Drawing:
    """One batch of pictures on its way from noise.

    Args:
        guided: which of the pictures guidance draws, ``[pictures]`` bool; where the batch isn't
            doubled, none does. ``None``: look at the latents.
        step: number of the first step.
        differentiable: whether gradients go through what is remembered.
    """

    def __init__(
        self, guided: Tensor | None = None, step: int = 0, differentiable: bool = False
    ) -> None:
        self.guided = guided
        self.step = step - 1
        """Number of the step that is being made; -1 before the first of a whole drawing."""
        self.differentiable = differentiable
        self.remembered: dict[object, Any] = {}
        """What a guard remembers of the earlier steps, by the guard."""
        self.made: dict[object, tuple[Tensor, Any]] = {}
        """What a guard made of a condition, beside its rows."""


@dataclass(frozen=True, eq=False)
class Step:
    """What a denoiser is asked in one step of a drawing.

    With classifier-free guidance there are two rows a picture: the first half of a batch is without
    the prompts, the second half with them.
    """

    latents: Tensor
    """``[batch, channels, height, width]``."""
    time: Tensor
    condition: Condition
    """Of ``[batch]`` prompts."""
    guided: Tensor | None
    """Which pictures guidance draws, ``[pictures]`` bool; ``None`` if the batch isn't doubled."""
    drawing: Drawing
    reader: Reader | None = None
    """Knows the tokens of prompts, for guards that read them."""
    prompts: bool = True
    """Whether the condition is of prompts; a guard's own words are none, and aren't filtered."""
    reroute: Reroute | None = None
    """What becomes of the denoiser's skip features; ``None`` leaves them."""

    @property
    def number(self) -> int:
        """How many steps the drawing has made before."""
        return self.drawing.step

    @property
    def prompted(self) -> slice:
        """The rows with the prompts: the second half under guidance, else all."""
        return slice(0 if self.guided is None else len(self.latents) // 2, None)

    def told(self, condition: Condition) -> "Step":
        """The same step with another condition of as many rows."""
        return replace(self, condition=condition)

    def beside(self, condition: Condition, *, prompts: bool = True) -> "Step":
        """The pictures without guidance, each with one row of another condition.

        ``prompts`` says whether these are prompts still.
        """
        rows, time = self.prompted, self.time
        if time.ndim and len(time) == len(self.latents):
            time = time[rows]
        return replace(
            self,
            latents=self.latents[rows],
            time=time,
            condition=condition,
            guided=None,
            prompts=prompts,
            reroute=None,
        )

    def rerouted(self, reroute: Reroute) -> "Step":
        """The same step with changed skip features."""
        return replace(self, reroute=reroute)

    def once(self, guard: object, make: Callable[[], T]) -> T:
        """What ``make`` gives for this condition, made once in a drawing.

        So gates inside of a guard open once for a prompt, not in every step. Where the rows want
        gradients it is made each time.
        """
        rows, made = self.condition.rows, self.drawing.made
        if torch.is_grad_enabled() and rows.requires_grad:
            return make()
        if guard not in made or made[guard][0] is not rows:
            made[guard] = rows, make()
        found: T = made[guard][1]
        return found


class Drawings(threading.local):
    """The drawing that a thread is at; copies of a model are at none."""

    def __init__(self) -> None:
        self.said: Drawing | None = None
        """What ``drawing`` says."""
        self.found: Drawing | None = None
        self.rows: Tensor | None = None
        self.mark: tuple[object, ...] = ()
        self.time = 0.0

    @staticmethod
    def of(model: Model) -> "Drawings":
        """Those of a model; always the same object. The model's lock isn't needed."""
        known: Drawings = model.attached.setdefault(Drawings, Drawings())
        return known

    def step(self, call: DenoiserCall, reader: Reader | None) -> Step:
        """The step that a call of the denoiser makes."""
        time = torch.as_tensor(call.time)
        at = self.said or self._found(call, time)
        at.step += 1
        return Step(call.latents, time, call.condition, _guided(at, call.latents), at, reader)

    def _found(self, call: DenoiserCall, time: Tensor) -> Drawing:
        rows, now = call.condition.rows, float(time.max())
        version = None if rows.is_inference() else rows._version
        mark = (version, tuple(call.latents.shape), call.latents.device)
        if self.found is None or self.rows is not rows or self.mark != mark or now > self.time:
            self.found = Drawing()
        self.rows, self.mark, self.time = rows, mark, now
        return self.found

    def forget(self) -> None:
        """Keep nothing of the last drawing."""
        self.found, self.rows = None, None

    def __reduce__(self) -> tuple[type["Drawings"], tuple[()]]:
        return Drawings, ()


def _guided(drawing: Drawing, latents: Tensor) -> Tensor | None:
    """Which pictures guidance draws: it asks with and without the prompts at one place."""
    pictures, odd = divmod(len(latents), 2)
    said = drawing.guided
    if said is not None:
        return said if not odd and len(said) == pictures else None
    if odd or not pictures or not torch.equal(latents[:pictures], latents[pictures:]):
        return None
    return torch.ones(pictures, dtype=torch.bool, device=latents.device)


@contextmanager
def drawing(model: Model, guided: Tensor | None = None, step: int = 0) -> Iterator[Drawing]:
    """Inside, each call of the model's denoiser by this thread is a step of one drawing.

    For whoever draws with a loop of their own. An attack that looks at the tenth step alone says
    ``step=10``; gradients go through what guards remember from one step to the next.

    Args:
        model: what draws.
        guided: which of the pictures guidance draws, ``[pictures]`` bool, where the batch is
            doubled; ``None``: those whose latents stand twice in the batch.
        step: number of the first step.
    """
    drawings = Drawings.of(model)
    before = drawings.said
    drawings.said = made = Drawing(guided, step, differentiable=True)
    try:
        yield made
    finally:
        drawings.said = before
