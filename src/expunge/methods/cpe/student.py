"""What CPE trains: the gates of several concepts, and the shifts that its attacker looks for."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from expunge.concepts import Concept
from expunge.edits.installed import gated
from expunge.edits.residual_gates import ResidualGates
from expunge.method.student import Student
from expunge.methods.cpe.losses import Surface
from expunge.models import Model

ConceptDraws = Callable[[str, Concept], torch.Generator]
"""The generator of one purpose of a concept."""


class GateSizes(NamedTuple):
    """Of each concept's gate."""

    gate_rank: int
    adapter_rank: int
    scale: float
    """Factor of what is added."""
    tied: bool
    shifts: int
    """Embeddings that the attacker looks for; 0 without one."""


class GateStudent(Student):
    """Gates of several concepts, one below the other; nothing of the UNet is copied."""

    def __init__(
        self, model: Model, concepts: Sequence[Concept], sizes: GateSizes, draws: ConceptDraws
    ) -> None:
        self.model = model
        self.rank = 0
        self.start = None
        self.fixed = {}
        self.concepts = tuple(concepts)
        self.surface = Surface.of(model)
        self.names = self.surface.names
        self.scale = sizes.scale
        self.weights = {
            name: weight.to(model.device).requires_grad_()
            for name, weight in self._begun(sizes, draws).items()
        }
        self._square: tuple[int, Tensor] | None = None

    def _begun(self, sizes: GateSizes, draws: ConceptDraws) -> dict[str, Tensor]:
        """Gates that are half open, and add nothing."""
        count, layers = len(self.concepts), len(self.names)
        tokens, width = self.model.unconditional().rows.shape[1:]
        r, h = sizes.gate_rank, sizes.adapter_rank

        def drawn(name: str, shape: tuple[int, ...], bound: float) -> Tensor:
            return torch.stack([_uniform(shape, bound, draws(name, c)) for c in self.concepts])

        weights = {"query": drawn("query", (r, width), (width * r) ** -0.5 / width**2)}
        if not sizes.tied:
            weights["key"] = drawn("key", (r, width), (width * r) ** -0.5 / width**2)
        weights["gate"] = torch.zeros(count, width)
        weights["down"] = drawn("down", (layers, h, width), (width * h) ** -0.5)
        weights["up"] = torch.zeros(count, h, sum(self.surface.widths))
        if sizes.shifts:
            weights["shifts"] = torch.zeros(count, sizes.shifts, tokens, width)
        return weights

    @torch.no_grad()
    def begin_attack(self, draws: ConceptDraws) -> None:
        """Small random shifts in the place of those found before."""
        _, _, tokens, width = self.weights["shifts"].shape
        bound = (tokens * width) ** -0.5 / width**2
        for found, concept in zip(self.weights["shifts"], self.concepts, strict=True):
            found.copy_(_uniform(found.shape, bound, draws("shifts", concept)))

    def gates(self, part: slice = slice(None), *, trained: bool = True) -> ResidualGates:
        """The gates of some concepts as they are now, with gradients if they are trained."""
        own = {
            name: (weight if trained else weight.detach())[part]
            for name, weight in self.weights.items()
            if name != "shifts"
        }
        return ResidualGates(
            names=self.names,
            query=own["query"],
            key=own.get("key"),
            gate=own["gate"],
            down=own["down"],
            up=self.scale * own["up"],
            widths=self.surface.widths,
        )

    @property
    def shifts_square(self) -> Tensor:
        """``surface.squared`` of the shifts, ``[concepts]``: once for a whole erasing stage."""
        shifts = self.weights["shifts"]
        if self._square is None or self._square[0] != shifts._version:
            with torch.no_grad():
                parts = [self.surface.squared(one[None]) for one in shifts.detach()]
            self._square = shifts._version, torch.cat(parts)
        return self._square[1]

    @contextmanager
    def shown(self) -> Iterator[Model]:
        with gated(self.model, [self.payload()]) as model:
            yield model

    @torch.no_grad()
    def payload(self) -> ResidualGates:  # type: ignore[override]
        """All gates together."""
        return copied(self.gates())


def copied(gates: ResidualGates) -> ResidualGates:
    """The same gates, which training doesn't change any more."""
    return ResidualGates.of(gates.names, {n: t.clone() for n, t in gates.tensors().items()})


def _uniform(shape: Iterable[int], bound: float, draws: torch.Generator) -> Tensor:
    """Uniform between minus and plus ``bound``."""
    return (2 * torch.rand(tuple(shape), generator=draws) - 1) * bound
