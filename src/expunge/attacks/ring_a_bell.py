"""Ring-A-Bell (Tsai et al., ICLR 2024): tokens whose rows are those of a prompt and the concept.

It knows the text encoder alone. The concept is what prompts with it have more than the same
prompts without it (eq. 3), and a genetic search finds ``K`` tokens near a prompt with ``n`` times
as much of it (eq. 4)::

    c^ = mean_i  c(with_i) - c(without_i)
    min_ids  | c(p) + n c^ - c(ids) |^2

Each generation keeps the better half; some of it is crossed, and some prompts change in one place.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from expunge.attacks import genetic
from expunge.attacks.base import Attack, Knows, Search, turns
from expunge.attacks.concept_vector import PairFile, concept_vector, pairs_of
from expunge.attacks.found import Found
from expunge.attacks.target import Target
from expunge.attacks.tokens import Tokens
from expunge.models.text import TextInput
from expunge.seeding import generator

UNKNOWN = -1.0
"""Stands in a state for the fitness of a prompt that wasn't compared yet."""
BLOCK = 128
"""Prompts that are encoded side by side."""


class RingABell(Attack):
    """A genetic search in the text encoder alone."""

    name: ClassVar[str] = "ring-a-bell"
    title: ClassVar[str] = "Ring-A-Bell"
    year: ClassVar[int] = 2024
    url: ClassVar[str] = "https://arxiv.org/abs/2310.10012"
    knows: ClassVar[frozenset[Knows]] = frozenset({"text encoder"})
    spends: ClassVar[bool] = False

    fidelity: Literal["original", "corrected"] = "corrected"
    tokens: int = Field(16, ge=1)
    """K: tokens of a prompt."""
    strength: float = Field(3.0, ge=0)
    """n: how much of the concept is added."""
    pairs: PairFile | None = None
    """A file of prompts with the concept and without it; by default everyday prompts."""
    population: int = Field(200, ge=4)
    """Prompts of a generation."""
    generations: int = Field(3000, ge=1)
    """Steps at most."""
    crossover: float = Field(0.5, ge=0, le=1)
    """Share of the kept prompts that are crossed."""
    mutation: float = Field(0.25, ge=0, le=1)
    """Share of the prompts that change."""
    elite: int = Field(4, ge=1)
    """Prompts that don't change; the released program has none."""
    padding_rows: int = Field(4, ge=1)
    """Rows of padding that are compared and stand for all of it; the released program compares
    them all."""
    own_name: bool = False
    """Whether the concept's own tokens may be used, as in the released program."""
    starts: int = Field(3, ge=1)
    """Searches; pictures are shared among them."""

    def check(self, target: Target) -> None:
        Tokens.of(target)

    def groups(self, pictures: int) -> Sequence[Sequence[int]]:
        return turns(pictures, self.starts)

    def begin(self, target: Target, pictures: Sequence[int], seed: int) -> Search:
        if self.fidelity == "original":
            return Released(self, target, pictures, seed)
        return Corrected(self, target, pictures, seed)


class Genetic(Search):
    """A population of prompts for the pictures' first prompt."""

    def __init__(
        self, attack: RingABell, target: Target, pictures: Sequence[int], seed: int
    ) -> None:
        self.attack, self.target, self.pictures, self.seed = attack, target, pictures, seed
        self.tokens = Tokens.of(target)
        self.tokens.row([0] * attack.tokens)  # raises if they are too many
        self.generation = 0
        self.vocabulary = self._vocabulary()
        draws = self.draws("population")
        entries = torch.randint(
            len(self.vocabulary), (attack.population, attack.tokens), generator=draws
        )
        self.population = self.vocabulary[entries]
        self.best = self.population[0]
        self.loss: float | None = None

    @cached_property
    def wanted(self) -> Tensor:
        """``c(p) + n c^``, ``[window, width]``."""
        model, attack = self.target.model, self.attack
        pairs = attack.pairs.pairs if attack.pairs else pairs_of(self.target.concept)
        vector = concept_vector(model, pairs)
        return model.encode([self.target.prompts[self.pictures[0]]])[0] + attack.strength * vector

    def _vocabulary(self) -> Tensor:
        """The ids that prompts are made of, ``[ids]``."""
        allowed = self.tokens.readable
        if self.attack.own_name:
            return allowed
        return self.tokens.without(allowed, self.target.concept.phrases)

    def draws(self, name: str) -> torch.Generator:
        """Of this generation."""
        return generator(self.seed, name, self.pictures[0], self.generation)

    def encoded(self, population: Tensor, rows: int) -> Tensor:
        """The first rows of prompts, ``[prompts, rows, width]``."""
        whole = torch.stack([self.tokens.row(ids) for ids in population.tolist()])
        blocks = torch.split(whole[:, :rows], BLOCK)
        return torch.cat([self.target.model.embed(TextInput(block)).rows for block in blocks])

    def fitness(self, population: Tensor) -> Tensor:
        """``|wanted - c(ids)|^2`` of prompts ``[prompts, tokens]``."""
        found = self.encoded(population, len(self.wanted))
        return (found - self.wanted).square().flatten(1).sum(1)

    def keep(self, losses: Tensor, order: Tensor) -> None:
        """Keep the better half of the population, and the best of it."""
        best = order[0]
        self.best, self.loss = self.population[best], float(losses[best])
        self.population = self.population[order[: self.attack.population // 2]]

    @property
    def state(self) -> Mapping[str, Tensor]:
        loss = [] if self.loss is None else [self.loss]
        return {
            "population": self.population,
            "best": self.best,
            "loss": torch.tensor(loss, dtype=torch.float64),
            "generation": torch.tensor(self.generation),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.population, self.best = state["population"], state["best"]
        self.loss = next(iter(state["loss"].tolist()), None)
        self.generation = int(state["generation"])

    def found(self) -> Found:
        return Found(ids=self.tokens.sendable(self.best.tolist()), loss=self.loss)

    @property
    def over(self) -> bool:
        return self.generation >= self.attack.generations


class Released(Genetic):
    """As the released program: the best changes as well, and nothing is compared twice less."""

    def _vocabulary(self) -> Tensor:
        return torch.arange(1, len(self.tokens.table) - 2)

    @torch.no_grad()
    def step(self) -> None:
        losses = self.fitness(self.population)
        self.keep(losses, losses.argsort(stable=True))
        attack = self.attack
        if self.generation + 1 < attack.generations:
            crossing = genetic.crossing(
                len(self.population), attack.tokens, attack.crossover, self.draws("crossover")
            )
            crossed = genetic.crossed(self.population, crossing)
            mutation = genetic.mutation(
                crossed, self.vocabulary, attack.mutation, self.draws("mutation")
            )
            self.population = genetic.mutated(crossed, mutation)
        self.generation += 1


class Corrected(Genetic):
    """An elite that stays, no prompt twice, and no prompt encoded twice."""

    def __init__(
        self, attack: RingABell, target: Target, pictures: Sequence[int], seed: int
    ) -> None:
        super().__init__(attack, target, pictures, seed)
        self.known: dict[tuple[int, ...], float] = {}

    def fitness(self, population: Tensor) -> Tensor:
        rows = min(self.attack.tokens + 1 + self.attack.padding_rows, len(self.wanted))
        weights = torch.ones(rows, device=self.wanted.device)
        padding = self.attack.tokens + 1
        weights[padding:] = (len(self.wanted) - padding) / (rows - padding)
        found = self.encoded(population, rows)
        return (found - self.wanted[:rows]).square().sum(-1) @ weights

    def known_fitness(self) -> Tensor:
        """Of the population; only prompts that are new are encoded. No other is remembered."""
        rows = [tuple(row) for row in self.population.tolist()]
        new = [row for row in dict.fromkeys(rows) if row not in self.known]
        if new:
            found = self.fitness(torch.tensor(new)).tolist()
            self.known |= {
                row: loss if self.tokens.allowed(row) else float("inf")
                for row, loss in zip(new, found, strict=True)
            }
        self.known = {row: self.known[row] for row in rows}
        return torch.tensor([self.known[row] for row in rows], dtype=torch.float64)

    @torch.no_grad()
    def step(self) -> None:
        attack = self.attack
        losses = self.known_fitness()
        self.keep(losses, losses.argsort(stable=True))
        elite = self.population[: attack.elite]
        crossing = genetic.crossing(
            len(self.population), attack.tokens, attack.crossover, self.draws("crossover")
        )
        crossed = genetic.crossed(self.population, crossing)
        mutation = genetic.mutation(
            crossed, self.vocabulary, attack.mutation, self.draws("mutation")
        )
        others = torch.unique(genetic.mutated(crossed, mutation), dim=0)
        missing = max(0, attack.population - len(elite) - len(others))
        entries = torch.randint(
            len(self.vocabulary), (missing, attack.tokens), generator=self.draws("new")
        )
        self.population = torch.cat([elite, others, self.vocabulary[entries]])
        self.generation += 1

    @property
    def state(self) -> Mapping[str, Tensor]:
        rows = (tuple(row) for row in self.population.tolist())
        losses = [self.known.get(row, UNKNOWN) for row in rows]
        return {**super().state, "fitness": torch.tensor(losses, dtype=torch.float64)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        super().restore(state)
        rows = (tuple(row) for row in self.population.tolist())
        pairs = zip(rows, state["fitness"].tolist(), strict=True)
        self.known = {row: loss for row, loss in pairs if loss != UNKNOWN}
