"""Prompting4Debugging (P4D; Chin et al., ICML 2024): tokens that ask the edited for the base's.

Continuous embeddings go down the distance of the edited model's answers from the base's for the
concept (eq. 2); what the model is asked is the nearest token of each (Wen et al., 2023)::

    L = mean | eps_edited(x_t, t, c(near(E))) - eps_base(x_t, t, c(p)) |^2
    E <- AdamW(E, dL / d near(E))

*P4D-N* looks for a prompt of its own, *P4D-K* for tokens between those of the prompt. The variant
``unlearn-diff-atk`` is the weaker one in the program of that name.
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
from expunge.attacks.layouts import Layout, Place, alone, around, between
from expunge.attacks.points import Points
from expunge.attacks.rows import check_rows
from expunge.attacks.shortlist import Shortlist
from expunge.attacks.sld_rule import Preset, p4d_answer, rule_of
from expunge.attacks.target import Target
from expunge.attacks.tokens import Tokens
from expunge.edits.safe_guidance import Rule
from expunge.models import Condition
from expunge.models.text import TextInput
from expunge.seeding import generator

STEPS = 40
"""Steps at each time, in the program of UnlearnDiffAtk."""


class P4D(Attack):
    """Hard prompts for each picture, towards the base's answers."""

    name: ClassVar[str] = "p4d"
    title: ClassVar[str] = "Prompting4Debugging"
    year: ClassVar[int] = 2024
    url: ClassVar[str] = "https://arxiv.org/abs/2309.06135"
    knows: ClassVar[frozenset[Knows]] = frozenset({"weights", "base", "pictures"})

    fidelity: Literal["original", "corrected"] = "corrected"
    variant: Literal["n", "k", "unlearn-diff-atk"] = "n"
    tokens: int = Field(16, ge=1)
    """Free tokens of P4D-N and of UnlearnDiffAtk's variant."""
    every: int = Field(3, ge=1)
    """Tokens of the prompt between two free ones, in P4D-K."""
    place: Place = "prefix"
    """Where free tokens stand in UnlearnDiffAtk's variant."""
    lr: float = Field(0.1, gt=0)
    """Learning rate."""
    weight_decay: float = Field(0.1, ge=0)
    """Decay; UnlearnDiffAtk's variant adds it to the gradient."""
    batch_size: int = Field(4, ge=1)
    """Points that a step looks at; the released programs look at one."""
    looks: int = Field(8, ge=1)
    """Points at which prompts are compared."""
    safety_concept: str = ""
    """What safe latent diffusion leads away from, for the released loss against it."""
    safety: Preset | Rule = "max"
    """Its preset or rule there."""

    def check(self, target: Target) -> None:
        Tokens.of(target)
        check_rows(target)

    def begin(self, target: Target, pictures: Sequence[int], seed: int) -> Search:
        if self.fidelity == "original":
            return Released(self, target, pictures, seed)
        return Corrected(self, target, pictures, seed)

    def layout(self, prompt: Sequence[int]) -> Layout:
        """The variant's layout of a prompt's ids."""
        if self.variant == "n":
            return alone(self.tokens)
        if self.variant == "k":
            return between(prompt, self.every)
        return around(prompt, self.tokens, self.place)

    def optimizer(self, rows: list[Tensor]) -> torch.optim.Optimizer:
        """Of the embeddings."""
        kind = torch.optim.Adam if self.variant == "unlearn-diff-atk" else torch.optim.AdamW
        return kind(rows, lr=self.lr, weight_decay=self.weight_decay)


class Look(NamedTuple):
    """What a step sees."""

    loss: float
    gradient: Tensor
    """Of the nearest tokens' embeddings, ``[places, width]``."""


def nearest(rows: Tensor, table: Tensor) -> Tensor:
    """The entry of the table in the direction most like that of each row, ``[rows]``."""
    unit = partial(torch.nn.functional.normalize, dim=-1)
    return (unit(rows) @ unit(table).T).argmax(-1)


class HardPrompt(Search):
    """Embeddings in some places of a prompt."""

    def __init__(self, attack: P4D, target: Target, pictures: Sequence[int], seed: int) -> None:
        self.attack, self.target, self.pictures, self.seed = attack, target, pictures, seed
        self.tokens = Tokens.of(target)
        self.layout = attack.layout(self.tokens.ids(target.prompts[pictures[0]]))
        self.row = self._row()
        self.places = self._places()
        self.vocabulary = self._vocabulary()
        self.table = self.tokens.table[self.vocabulary.to(self.tokens.table.device)]
        self.begin_with(self._drawn())

    def begin_with(self, ids: Sequence[int]) -> None:
        """Begin with these ids in the free places."""
        whole = self.layout.filled(ids)
        start = torch.tensor([whole[place] for place in self.places])
        self.descent = Descent(
            {"rows": self.tokens.table[start.to(self.tokens.table.device)]},
            self.attack.optimizer,
        )

    def _drawn(self) -> list[int]:
        draws = generator(self.seed, "start", self.pictures[0])
        entries = torch.randint(len(self.vocabulary), (len(self.layout.free),), generator=draws)
        return self.vocabulary[entries].tolist()

    def _row(self) -> Tensor:
        """The whole row of ids, ``[window]``."""
        return self.tokens.row(self.layout.ids)

    def _places(self) -> tuple[int, ...]:
        """Places with embeddings, from 0 on."""
        return self.layout.free

    def _vocabulary(self) -> Tensor:
        """The ids that may be nearest, ``[ids]``."""
        return self.tokens.readable

    @property
    def entries(self) -> Tensor:
        """The nearest tokens' places in the vocabulary, ``[places]``."""
        return nearest(self.descent["rows"].detach(), self.table)

    def prompt(self, entries: Tensor) -> list[int]:
        """The prompt with these tokens."""
        found = list(self.layout.ids)
        ids = self.vocabulary[entries.cpu()].tolist()
        for place, one in zip(self.places, ids, strict=True):
            found[place] = one
        return found

    def look(self, entries: Tensor, where: Points) -> Look:
        """What the model makes of the prompt with these tokens."""
        chosen = self.table[entries].clone().requires_grad_()
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

    @property
    def state(self) -> Mapping[str, Tensor]:
        return self.descent.state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.descent.restore(state)


class Corrected(HardPrompt):
    """Prompts end as prompts do, several points a step, and the best prompt of all."""

    def __init__(self, attack: P4D, target: Target, pictures: Sequence[int], seed: int) -> None:
        super().__init__(attack, target, pictures, seed)
        numbers = target.known.draw(attack.looks, generator(seed, "looks", pictures[0]), pictures)
        score = points.proxy(target, numbers, "base")
        self.shortlist = Shortlist(self.tokens, score, self.prompt(self.entries))

    def step(self) -> None:
        draws = generator(self.seed, "points", self.pictures[0], self.descent.steps)
        numbers = self.target.known.draw(self.attack.batch_size, draws, self.pictures)
        entries = self.entries
        self.shortlist.see(self.prompt(entries))
        self.advance(self.look(entries, points.known(self.target, numbers, "base")))

    def found(self) -> Found:
        return Found(ids=self.shortlist.best, loss=self.shortlist.loss)

    @property
    def state(self) -> Mapping[str, Tensor]:
        return {**super().state, **self.shortlist.state}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.shortlist.restore(state)
        super().restore(state)


class Released(HardPrompt):
    """As the released programs: a token in the place of padding, one point a step."""

    def __init__(self, attack: P4D, target: Target, pictures: Sequence[int], seed: int) -> None:
        super().__init__(attack, target, pictures, seed)
        self.momentum = torch.zeros_like(target.known.clean[:1])
        self.safety: Condition | None = None
        if attack.safety_concept:
            self.safety = target.model.condition([attack.safety_concept])

    def _row(self) -> Tensor:
        row = super()._row()
        if self.attack.variant != "unlearn-diff-atk":
            kept = len(self.layout.ids) + (1 if self.attack.variant == "k" else 2)
            row[kept:] = 0
        return row

    def _places(self) -> tuple[int, ...]:
        whole = tuple(range(len(self.layout.ids)))
        return whole if self.attack.variant == "k" else self.layout.free

    def _vocabulary(self) -> Tensor:
        return torch.arange(len(self.tokens.table))

    def loss(self, where: Points, condition: Condition) -> Tensor:
        if self.safety is None:
            return super().loss(where, condition)
        both = Condition.cat([condition, self.safety])
        asked, safety = self.target.predict(
            where.latents.repeat(2, 1, 1, 1), where.time.repeat(2), both
        ).chunk(2)
        answer, self.momentum = p4d_answer(
            rule_of(self.attack.safety), asked, safety, self.momentum,
            self.descent.steps, self.target.sampling.guidance_scale,
        )  # fmt: skip
        return torch.nn.functional.mse_loss(answer.float(), where.wanted.float())

    def advance(self, look: Look) -> None:
        gradient = look.gradient.clone()
        for row, place in enumerate(self.places):
            if place not in self.layout.free:
                gradient[row] = 0
        super().advance(look._replace(gradient=gradient))

    def step(self) -> None:
        known, number = self.target.known, self._point()
        # Guided answers are compared with unguided ones.
        where = Points(known.latents[number], known.time[number], known.conditional[number])
        self.advance(self.look(self.entries, where))

    def _point(self) -> Tensor:
        """The number of the next point, ``[1]``: at random, or one time after the other."""
        known, steps = self.target.known, self.descent.steps
        if self.attack.variant != "unlearn-diff-atk":
            return known.draw(
                1, generator(self.seed, "points", self.pictures[0], steps), self.pictures
            )
        [own] = torch.isin(known.picture, torch.tensor(list(self.pictures))).nonzero(as_tuple=True)
        return own[known.time[own].argsort(stable=True)][steps // STEPS % len(own)][None]

    def found(self) -> Found:
        return Found(ids=self.tokens.sendable(self.prompt(self.entries)), loss=self.descent.last)

    @property
    def state(self) -> Mapping[str, Tensor]:
        return {**super().state, "momentum": self.momentum}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.momentum = state["momentum"].to(self.momentum)
        super().restore(state)
