"""UnlearnDiffAtk (Zhang et al., ECCV 2024): tokens beside the prompt for which a picture fits.

The model that draws a concept also classifies it: its answers fit the noise in pictures of the
concept. So tokens are looked for beside the prompt that make them fit (eq. 5)::

    min_d  E | e - eps_edited(x_t, t, c(p + d)) |^2

In the released program each free token is a row ``u`` of probabilities over the vocabulary. A step
draws a token from each, and hands its gradient on to the whole row::

    u <- P(Adam(u, clip(g E^T, -1, 1)))

with the gradient ``g`` of the drawn embeddings, all embeddings ``E``, and the projection ``P`` on
the simplex. The corrected attack takes the tokens that ``g E^T`` promises most of, and compares
them (``expunge.attacks.swaps``).
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
from expunge.attacks.simplex import bisected, drawn, straight_through
from expunge.attacks.swaps import Swaps
from expunge.attacks.target import Target
from expunge.attacks.tokens import Tokens
from expunge.seeding import generator


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
    looks: int = Field(4, ge=1)
    """Points at which prompts are compared, and gradients taken."""
    swaps: int = Field(8, ge=1)
    """Prompts that a step compares."""
    lr: float = Field(0.01, gt=0)
    """Learning rate of Adam, in the released program."""
    weight_decay: float = Field(0.1, ge=0)
    """Decay there, added to the gradient."""

    def check(self, target: Target) -> None:
        Tokens.of(target)
        check_rows(target)

    def begin(self, target: Target, pictures: Sequence[int], seed: int) -> Search:
        if self.fidelity == "original":
            return Released(self, target, pictures, seed)
        prompt = Tokens.of(target).ids(target.prompts[pictures[0]])
        layout = around(prompt, self.tokens, self.place)
        return Swaps(
            target, pictures, seed, layout, (), "noise", self.looks, self.swaps, control=prompt
        )


class Look(NamedTuple):
    """What a step sees."""

    loss: float
    embeddings: Tensor
    """Gradient of the drawn embeddings, ``[tokens, width]``."""
    rows: Tensor
    """Gradient of the rows, ``[tokens, vocabulary]``."""


class Released(Search):
    """As the released program: one time after the other, fresh noise, about the simplex."""

    def __init__(
        self, attack: UnlearnDiffAtk, target: Target, pictures: Sequence[int], seed: int
    ) -> None:
        self.attack, self.target, self.pictures, self.seed = attack, target, pictures, seed
        self.tokens = Tokens.of(target)
        self.prompt = self.tokens.ids(target.prompts[pictures[0]])
        self.layout = around(self.prompt, attack.tokens, attack.place)
        self.tokens.row(self.layout.ids)  # raises if they are too many
        self.table = self.tokens.table
        count = len(self.table)
        self.descent = Descent(
            {"rows": torch.full((attack.tokens, count), 1 / count, device=self.table.device)},
            partial(torch.optim.Adam, lr=attack.lr, weight_decay=attack.weight_decay),
            self._project,
        )

    def _project(self) -> None:
        rows = self.descent["rows"]
        rows.copy_(bisected(rows))

    def draws(self, name: str) -> torch.Generator:
        """Of this step."""
        return generator(self.seed, name, self.pictures[0], self.descent.steps)

    def look(self, drawn_ids: Tensor, where: Points) -> Look:
        """What the model makes of drawn tokens, ``[tokens]`` ids."""
        chosen = self.table[drawn_ids.to(self.table.device)].clone().requires_grad_()
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
        return self.layout.filled(self.descent["rows"].detach().argmax(-1).tolist())

    @property
    def state(self) -> Mapping[str, Tensor]:
        return self.descent.state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.descent.restore(state)

    def step(self) -> None:
        ids = drawn(self.descent["rows"].detach(), self.draws("tokens"))
        time = points.time_of(self.descent.steps, self.target.model.process.times)
        draws = [self.draws("noise")]
        where = points.fresh(self.target, self.pictures[0], torch.tensor([time]), draws)
        self.advance(self.look(ids, where))

    def found(self) -> Found:
        if not self.descent.steps:
            return Found(ids=tuple(self.prompt))
        return Found(ids=self.tokens.sendable(self.likeliest), loss=self.descent.last)

    @property
    def over(self) -> bool:
        return self.descent.steps >= points.TIMES * points.STEPS
