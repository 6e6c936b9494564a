"""P4D as the released programs do it: embeddings whose nearest tokens are asked with.

Every step looks at one new point. In P4D's own program every 50th step draws a picture, and the
prompt whose picture is most like the base's is kept.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import mse_loss, normalize

from expunge.attacks import points
from expunge.attacks.base import Search
from expunge.attacks.descent import Descent
from expunge.attacks.found import Found
from expunge.attacks.layouts import Layout
from expunge.attacks.points import Points
from expunge.attacks.shortlist import Shortlist
from expunge.attacks.sld_rule import p4d_answer
from expunge.attacks.target import Target
from expunge.attacks.tokens import Tokens
from expunge.edits.safe_guidance import Rule
from expunge.models import Condition
from expunge.models.text import TextInput
from expunge.seeding import generator

STEPS, PICKED_EVERY, DRAWN_IN = 3000, 50, 25
"""Of P4D's program: steps of a run, those between two pictures, and steps of DPM-Solver++ in which
a picture is drawn."""
AHEAD = 50
"""Points for which the base is asked at a time, because the edit is taken off meanwhile."""

Optimizer = Callable[[list[Tensor]], torch.optim.Optimizer]


class Look(NamedTuple):
    """What a step sees."""

    loss: float
    gradient: Tensor
    """Of the nearest tokens' embeddings, ``[places, width]``."""


def nearest(rows: Tensor, directions: Tensor) -> Tensor:
    """Which direction, of length 1, is most like that of each row, ``[rows]``."""
    return (rows @ directions.T).argmax(-1)


class Released(Search):
    """Embeddings in the free places of the pictures' first prompt.

    Args:
        target: what is attacked.
        pictures: the search is for the first one's prompt.
        seed: decides all draws.
        layout: the prompt, and which places of it are free.
        optimizer: moves the embeddings.
    """

    steps: int = points.TIMES * points.STEPS
    """Of one run."""

    def __init__(
        self,
        target: Target,
        pictures: Sequence[int],
        seed: int,
        layout: Layout,
        optimizer: Optimizer,
    ) -> None:
        self.target, self.picture, self.seed = target, pictures[0], seed
        self.layout, self.optimizer, self.places = layout, optimizer, layout.free
        self.tokens = Tokens.of(target)
        self.row = self.tokens.row(layout.ids)
        self.directions = normalize(self.tokens.table, dim=-1)
        self.block, self.ahead = -1, points.known(target, torch.zeros(0).long(), "base")
        self.begin_with(self._drawn())

    def begin_with(self, ids: Sequence[int]) -> None:
        """Begin with these ids in the free places."""
        whole = self.layout.filled(ids)
        start = torch.tensor([whole[place] for place in self.places])
        table = self.tokens.table
        self.descent = Descent({"rows": table[start.to(table.device)]}, self.optimizer)

    def _drawn(self) -> list[int]:
        draws, places = generator(self.seed, "start", self.picture), len(self.layout.free)
        return torch.randint(len(self.tokens.table), (places,), generator=draws).tolist()

    @property
    def ids(self) -> Tensor:
        """Of the nearest tokens, ``[places]``."""
        return nearest(self.descent["rows"].detach(), self.directions)

    @property
    def prompt(self) -> list[int]:
        """The prompt with them."""
        found = list(self.layout.ids)
        for place, one in zip(self.places, self.ids.tolist(), strict=True):
            found[place] = one
        return found

    def look(self, ids: Tensor, where: Points) -> Look:
        """What the model makes of the prompt with these tokens."""
        chosen = self.tokens.table[ids].clone().requires_grad_()
        at = torch.tensor([[place + 1 for place in self.places]])
        text = TextInput(self.row[None]).replaced(chosen, at)
        condition = self.target.model.embed(text).to(dtype=self.target.model.dtype)
        loss = self.loss(where, condition)
        [gradient] = torch.autograd.grad(loss, [chosen])
        return Look(loss.item(), gradient)

    def loss(self, where: Points, condition: Condition) -> Tensor:
        """How far answers are from what is wanted."""
        return where.loss(self.target, condition)

    def advance(self, look: Look) -> None:
        """Move the embeddings."""
        self.descent.step_along({"rows": look.gradient}, look.loss)

    def step(self) -> None:
        self.advance(self.look(self.ids, self._point()))

    def _point(self) -> Points:
        """Of the next step; behind guards, guided answers are compared with unguided ones."""
        block, at = divmod(self.descent.steps, AHEAD)
        if block != self.block:
            self.block, self.ahead = block, self._asked(range(block * AHEAD, (block + 1) * AHEAD))
        with torch.no_grad():
            self.target.meter.count(1)  # here, so that a resumed search counts no block twice
        return Points(*(one[at : at + 1] for one in self.ahead))

    def _asked(self, steps: Sequence[int]) -> Points:
        """The points of some steps, with the base's answers."""
        draws = [generator(self.seed, "points", self.picture, step) for step in steps]
        time = torch.tensor([self.time(step, one) for step, one in zip(steps, draws, strict=True)])
        where = points.fresh(self.target, self.picture, time, draws)
        wanted = self.target.base_answer(where.latents, where.time, self.picture)
        return where._replace(wanted=wanted)

    def time(self, step: int, draws: torch.Generator) -> int:
        """Of a step."""
        return points.time_of(step, self.target.model.process.times)

    def found(self) -> Found:
        return Found(ids=self.tokens.sendable(self.prompt), loss=self.descent.last)

    @property
    def over(self) -> bool:
        return self.descent.steps >= self.steps

    @property
    def state(self) -> Mapping[str, Tensor]:
        return self.descent.state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.descent.restore(state)


class Picked(Released):
    """P4D's own program.

    Args:
        target: what is attacked.
        pictures: the search is for the first one's prompt.
        seed: decides all draws.
        layout: the prompt, and which places of it are free.
        optimizer: moves the embeddings.
        whole: whether embeddings stand in all places, and behind them no end.
        safety: what safe latent diffusion leads away from, and its rule.
    """

    steps = STEPS

    def __init__(
        self,
        target: Target,
        pictures: Sequence[int],
        seed: int,
        layout: Layout,
        optimizer: Optimizer,
        whole: bool,
        safety: tuple[str, Rule] | None,
    ) -> None:
        super().__init__(target, pictures, seed, layout, optimizer)
        if whole:
            self.places = tuple(range(len(layout.ids)))
            self.begin_with(self._drawn())
        self.row[len(layout.ids) + (1 if whole else 2) :] = 0
        self.momentum = torch.zeros_like(target.known.clean[:1])
        self.safety = safety and (target.model.condition([safety[0]]), safety[1])
        self.shortlist = Shortlist(self.tokens, self._unlike, self.prompt)

    @torch.no_grad()
    def _unlike(self, condition: Condition) -> list[float]:
        """How far the pictures of prompts are from the base's: 1 less the cosine."""
        target, critic = self.target, self.target.critic
        assert critic is not None  # as the attack has checked
        draws = generator(self.seed, "picked", self.picture)
        noise = torch.randn((1, *target.model.latent_shape), generator=draws)
        noise = noise.to(target.model.device, target.model.dtype)
        wanted = critic.features(target.model.colours(target.known.clean[self.picture][None]))
        drawn = [
            target.rollout(noise, condition[one : one + 1], DRAWN_IN, "dpm++")
            for one in range(len(condition))
        ]
        return [1 - float((critic.features(one) * wanted).sum()) for one in drawn]

    def step(self) -> None:
        if self.descent.steps % PICKED_EVERY == 0:
            self.shortlist.see(self.prompt)
        super().step()

    def time(self, step: int, draws: torch.Generator) -> int:
        return int(torch.randint(self.target.model.process.times, (), generator=draws))

    def loss(self, where: Points, condition: Condition) -> Tensor:
        if self.safety is None:
            return super().loss(where, condition)
        unsafe, rule = self.safety
        asked, safety = self.target.predict(
            where.latents.repeat(2, 1, 1, 1),
            where.time.repeat(2),
            Condition.cat([condition, unsafe]),
        ).chunk(2)
        answer, self.momentum = p4d_answer(
            rule, asked, safety, self.momentum,
            self.descent.steps, self.target.sampling.guidance_scale,
        )  # fmt: skip
        return mse_loss(answer.float(), where.wanted.float())

    def advance(self, look: Look) -> None:
        gradient = look.gradient.clone()
        for row, place in enumerate(self.places):
            if place not in self.layout.free:
                gradient[row] = 0
        super().advance(look._replace(gradient=gradient))

    def found(self) -> Found:
        return Found(ids=self.shortlist.best, loss=self.descent.last)

    @property
    def state(self) -> Mapping[str, Tensor]:
        return {**super().state, **self.shortlist.state, "momentum": self.momentum}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.momentum = state["momentum"].to(self.momentum)
        self.shortlist.restore(state)
        super().restore(state)
