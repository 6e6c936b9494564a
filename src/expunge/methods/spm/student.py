"""Membranes in training, beside a UNet that doesn't change."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from functools import partial
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from expunge.edits.factors import through
from expunge.edits.installed import gated
from expunge.edits.membranes import Membranes, Metric, Rule
from expunge.edits.payloads import LowRank
from expunge.method.batch import Batch
from expunge.method.student import Returned, Student
from expunge.models import Condition, Model
from expunge.models.calls import Answer
from expunge.seeding import generator


class Acts(NamedTuple):
    """How membranes act when pictures are drawn."""

    strength: float = 1.0
    rule: Rule = "paper"
    metric: Metric = "clipcos_tokenuni"


class Membrane(NamedTuple):
    """The factors of one concept, by the names of weights."""

    up: Mapping[str, Tensor]
    """``alpha / rank`` times ``U``, ``[out, rank]``."""
    down: Mapping[str, Tensor]
    """``D``, ``[rank, in]``."""


class MembraneStudent(Student):
    """One membrane for each concept; the one of ``turn`` is in the UNet, fully open.

    What it adds to a layer's output is computed from the thin factors: no weight is replaced, and
    none gets a gradient.
    """

    def __init__(
        self,
        model: Model,
        names: Iterable[str],
        phrases: Sequence[Sequence[str]],
        *,
        rank: int,
        alpha: float,
        seed: int,
        acts: Acts,
    ) -> None:
        """``phrases`` has the phrases of each concept."""
        self.phrases = phrases
        self.alpha = alpha
        self.acts = acts
        self.turn = 0
        """The concept whose membrane is open; see ``taking_turn``."""
        super().__init__(model, names, rank=rank, seed=seed)
        self.layers = {n: model.denoiser.get_submodule(n.rpartition(".")[0]) for n in self.names}

    def taking_turn(self, turn: int) -> Self:
        """The same membranes, with that of another concept open."""
        other = copy(self)
        other.turn = turn
        return other

    def for_batch(self, batch: Batch) -> Self:
        return self.taking_turn(int(batch["turn"]))

    def _fresh(self, name: str, seed: int) -> dict[str, Tensor]:
        """``U`` is 0; ``D`` is drawn as by He et al., with a slope of ``sqrt(5)``."""
        rows, columns = self.model.base_weight(name).flatten(1).shape
        factors = {}
        for concept in range(len(self.phrases)):
            draws = generator(seed, "membrane", concept, name)
            down = torch.empty(self.rank, columns)
            nn.init.kaiming_uniform_(down, a=5**0.5, generator=draws)
            factors[_key("up", concept, name)] = torch.zeros(rows, self.rank)
            factors[_key("down", concept, name)] = down
        return factors

    def factors(self, name: str, concept: int) -> tuple[Tensor, Tensor]:
        """``alpha / rank * U`` ``[out, rank]`` and ``D`` ``[rank, in]``; with gradients."""
        up, down = (self.weights[_key(side, concept, name)] for side in ("up", "down"))
        return self.alpha / self.rank * up, down

    def membrane(self, concept: int) -> Membrane:
        """All factors of a concept."""
        both = {name: self.factors(name, concept) for name in self.names}
        return Membrane(
            {n: up for n, (up, _) in both.items()}, {n: d for n, (_, d) in both.items()}
        )

    def gate(self, concept: int) -> Membranes:
        """A concept's membrane as the gate of an edit."""
        up, down = self.membrane(concept)
        phrases = self.phrases[concept]
        return Membranes.made(
            up,
            down,
            self.model.encode(phrases),
            self.model.tokenized(phrases),
            **self.acts._asdict(),
        )

    def value(self, name: str) -> Tensor:
        """A weight with this turn's membrane added, float32; has gradients."""
        up, down = self.factors(name, self.turn)
        before = self.before(name)
        return before + (up @ down).reshape(before.shape)

    @torch.no_grad()
    def payload(self) -> LowRank:
        """This turn's membrane, fully open for every prompt."""
        up, down = self.membrane(self.turn)
        return LowRank(
            {n: f.clone() for n, f in up.items()}, {n: f.clone() for n, f in down.items()}
        )

    def within(self, action: Callable[[], Returned]) -> Returned:
        """What ``action`` returns while this turn's membrane is in the UNet, with gradients."""
        handles = [
            layer.register_forward_hook(partial(self._add, name))
            for name, layer in self.layers.items()
        ]
        try:
            return action()
        finally:
            for handle in handles:
                handle.remove()

    def _add(self, name: str, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        up, down = self.factors(name, self.turn)
        added = through(args[0], (down.T.to(output.dtype), up.T.to(output.dtype)))
        return output + added

    @contextmanager
    def shown(self) -> Iterator[Model]:
        """The model with all membranes inside the block, each as open as the prompt makes it."""
        gates = [self.gate(concept) for concept in range(len(self.phrases))]
        with gated(self.model, [Membranes.joined(gates)]) as model:
            yield model


def distinct(predict: Answer, latents: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
    """Predictions of all rows; equal rows are computed once."""
    rows = list(zip(latents, timestep, condition.rows, strict=True))
    places = [next(at for at, one in enumerate(rows) if _same(one, row)) for row in rows]
    first = sorted(set(places))
    made = predict(latents[first], timestep[first], condition[first])
    return made[[first.index(place) for place in places]]


def _same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return all(map(torch.equal, one, other))


def _key(side: str, concept: int, name: str) -> str:
    return f"{side}:{concept}:{name}"
