"""UnlearnDiffAtk (Zhang et al., ECCV 2024): tokens beside the prompt for which a picture fits.

The model that draws a concept also classifies it: its answers fit the noise in pictures of the
concept. So tokens are looked for beside the prompt that make them fit (eq. 5)::

    min_d  E | e - eps_edited(x_t, t, c(p + d)) |^2

Each free token is a row ``u`` of probabilities over the vocabulary. A step draws a token from
each, and hands its gradient on to the whole row::

    u <- P(Adam(u, clip(g E^T, -1, 1)))

with the gradient ``g`` of the drawn embeddings, all embeddings ``E``, and the projection ``P`` on
the simplex.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from expunge.attacks import points
from expunge.attacks.base import Attack, Knows, Search
from expunge.attacks.descent import Descent
from expunge.attacks.found import Found
from expunge.attacks.layouts import Place, around
from expunge.attacks.points import Points
from expunge.attacks.rows import check_rows
from expunge.attacks.shortlist import Shortlist
from expunge.attacks.simplex import bisected, drawn, projected, straight_through
from expunge.attacks.target import Target
from expunge.attacks.tokens import Tokens
from expunge.seeding import generator

TIMES, STEPS = 50, 40
"""Of the released program: times of one run, and steps at each."""


class UnlearnDiffAtk(Attack):
    """Free tokens beside each picture's prompt, by descent over probabilities."""

    name: ClassVar[str] = "unlearn-diff-atk"
    title: ClassVar[str] = "UnlearnDiffAtk"
    year: ClassVar[int] = 2024
    url: ClassVar[str] = "https://arxiv.org/abs/2310.11868"
    knows: ClassVar[frozenset[Knows]] = frozenset({"weights", "pictures"})

    fidelity: Literal["original", "corrected"] = "corrected"
    tokens: int = Field(3, ge=1)
    """Free tokens."""
    place: Place = "prefix"
    """Where they stand."""
    lr: float = Field(0.01, gt=0)
    """Learning rate of Adam."""
    weight_decay: float = Field(0.1, ge=0)
    """Decay, added to the gradient."""
    batch_size: int = Field(4, ge=1)
    """Points that a step looks at; the released program looks at one."""
    look_every: int = Field(5, ge=1)
    """Steps between looks at the likeliest tokens."""
    looks: int = Field(8, ge=1)
    """Points at which prompts are compared."""

    def check(self, target: Target) -> None:
        Tokens.of(target)
        check_rows(target)

    def begin(self, target: Target, pictures: Sequence[int], seed: int) -> Search:
        if self.fidelity == "original":
            return Released(self, target, pictures, seed)
        return Corrected(self, target, pictures, seed)


class Look(NamedTuple):
    """What a step sees."""

    loss: float
    embeddings: Tensor
    """Gradient of the drawn embeddings, ``[tokens, width]``."""
    rows: Tensor
    """Gradient of the rows, ``[tokens, vocabulary]``."""


class SimplexSearch(Search):
    """Rows of probabilities for the pictures' first prompt."""

    def __init__(
        self, attack: UnlearnDiffAtk, target: Target, pictures: Sequence[int], seed: int
    ) -> None:
        self.attack, self.target, self.pictures, self.seed = attack, target, pictures, seed
        self.tokens = Tokens.of(target)
        self.prompt = self.tokens.ids(target.prompts[pictures[0]])
        self.layout = around(self.prompt, attack.tokens, attack.place)
        self.tokens.row(self.layout.ids)  # raises if they are too many
        self.vocabulary = self._vocabulary()
        self.table = self.tokens.table[self.vocabulary.to(self.tokens.table.device)]
        count = len(self.vocabulary)
        self.descent = Descent(
            {"rows": torch.full((attack.tokens, count), 1 / count, device=self.table.device)},
            partial(torch.optim.Adam, lr=attack.lr, weight_decay=attack.weight_decay),
            self._project,
        )

    def _vocabulary(self) -> Tensor:
        """The ids that rows are over, ``[ids]``."""
        return self.tokens.readable

    def _project(self) -> None:
        rows = self.descent["rows"]
        rows.copy_(projected(rows))

    def draws(self, name: str) -> torch.Generator:
        """Of this step."""
        return generator(self.seed, name, self.pictures[0], self.descent.steps)

    def look(self, entries: Tensor, where: Points) -> Look:
        """What the model makes of drawn tokens, ``[tokens]`` entries of the vocabulary."""
        chosen = self.table[entries.to(self.table.device)].clone().requires_grad_()
        condition = self.tokens.embedded(self.layout.ids, self.layout.free, chosen)
        loss = where.loss(self.target, condition.to(dtype=self.target.model.dtype))
        [gradient] = torch.autograd.grad(loss, [chosen])
        return Look(loss.item(), gradient, straight_through(gradient, self.table))

    def advance(self, look: Look) -> None:
        """Move and project the rows."""
        self.descent.step_along({"rows": look.rows}, look.loss)

    @property
    def likeliest(self) -> list[int]:
        """The prompt with the likeliest tokens."""
        best = self.descent["rows"].detach().argmax(-1).cpu()
        return self.layout.filled(self.vocabulary[best].tolist())

    @property
    def state(self) -> Mapping[str, Tensor]:
        return self.descent.state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.descent.restore(state)


class Corrected(SimplexSearch):
    """An exact projection, several points a step, and the best prompt of all."""

    def __init__(
        self, attack: UnlearnDiffAtk, target: Target, pictures: Sequence[int], seed: int
    ) -> None:
        super().__init__(attack, target, pictures, seed)
        numbers = target.known.draw(attack.looks, generator(seed, "looks", pictures[0]), pictures)
        self.shortlist = Shortlist(self.tokens, points.proxy(target, numbers, "noise"), self.prompt)

    def step(self) -> None:
        entries = drawn(self.descent["rows"].detach(), self.draws("tokens"))
        numbers = self.target.known.draw(
            self.attack.batch_size, self.draws("points"), self.pictures
        )
        self.advance(self.look(entries, points.known(self.target, numbers, "noise")))
        if self.descent.steps % self.attack.look_every == 0:
            self.shortlist.see(self.likeliest)

    def found(self) -> Found:
        return Found(ids=self.shortlist.best, loss=self.shortlist.loss)

    @property
    def state(self) -> Mapping[str, Tensor]:
        return {**super().state, **self.shortlist.state}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.shortlist.restore(state)
        super().restore({key: one for key, one in state.items() if not key.startswith("seen")})


class Released(SimplexSearch):
    """As the released program: one time after the other, fresh noise, about the simplex."""

    def _vocabulary(self) -> Tensor:
        return torch.arange(len(self.tokens.table))

    def _project(self) -> None:
        rows = self.descent["rows"]
        rows.copy_(bisected(rows))

    @property
    def time(self) -> int:
        """Of the next step."""
        stride = self.target.model.process.times // TIMES
        return stride // 2 + stride * (self.descent.steps // STEPS)

    def step(self) -> None:
        entries = drawn(self.descent["rows"].detach(), self.draws("tokens"))
        clean = self.target.known.clean[self.pictures[0]][None]
        noise = torch.randn(clean.shape, generator=self.draws("noise")).to(clean)
        where = points.noisy(self.target, clean, noise, torch.tensor([self.time]))
        self.advance(self.look(entries, where))

    def found(self) -> Found:
        if not self.descent.steps:
            return Found(ids=tuple(self.prompt))
        return Found(ids=self.tokens.sendable(self.likeliest), loss=self.descent.last)

    @property
    def over(self) -> bool:
        return self.descent.steps >= TIMES * STEPS
