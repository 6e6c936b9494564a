"""Attacks on the weights: what asks for a picture, and its noise, stay as they are.

Whoever has the file of an edited model can change its numbers. *Pruning* sets the smallest to
zero, *quantising* rounds them, *averaging* mixes them with the base's. None looks for anything, so
each is tried in several amounts. A model that they break draws no concept either; what is kept is
asked for beside it.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from expunge.attacks.base import Attack, Knows, Search
from expunge.attacks.found import Found
from expunge.attacks.target import Target
from expunge.errors import Unsupported


class Tampered(NamedTuple):
    """Weights that someone has changed."""

    amount: float
    """How much of it was done, in the attack's unit."""
    weights: Mapping[str, Tensor]
    """Parameters of the denoiser by name; the others are the base's."""
    calls: int
    """Of the denoiser, for all pictures; those with gradients count three times."""


class Tampering(Attack):
    """An attack on the weights; one change of them is for all pictures."""

    unit: ClassVar[str]
    """What its amounts are."""

    def view(self, target: Target) -> AbstractContextManager[None]:
        """The model as it is: the edit is in the weights that are changed."""
        return nullcontext()

    def check(self, target: Target) -> None:
        edit = target.edit
        if edit and (edit.gated or edit.guarded):
            raise Unsupported(
                "this edit has gates or guards, which whoever holds the weights takes off first"
            )

    def groups(self, pictures: int) -> Sequence[Sequence[int]]:
        return [range(pictures)]

    @abstractmethod
    def tampered(
        self, target: Target, calls: int, seed: int, folder: Path, key: str
    ) -> Iterator[Tampered]:
        """The weights of each amount, the smallest first.

        Args:
            target: what is attacked; no edit is applied to its model.
            calls: budget for each picture.
            seed: decides all draws.
            folder: where what takes long is kept.
            key: tells it from others there.

        Raises:
            Unsupported: see ``check``.
        """


class Altering(Tampering):
    """What is done to each parameter by itself, in several amounts."""

    spends: ClassVar[bool] = False

    @property
    @abstractmethod
    def amounts(self) -> tuple[float, ...]: ...

    @abstractmethod
    def altered(self, weight: Tensor, base: Tensor, amount: float) -> Tensor:
        """A parameter of the edited model after this, shaped like it; ``base`` is the base's."""

    def begin(self, target: Target, pictures: Sequence[int], seed: int) -> Search:
        return Amounts(self, target)

    def tampered(
        self, target: Target, calls: int, seed: int, folder: Path, key: str
    ) -> Iterator[Tampered]:
        self.check(target)
        search = Amounts(self, target)
        for amount in self.amounts:
            search.step()
            yield Tampered(amount, search.weights(), 0)


class Amounts(Search):
    """One amount after the other; before the first step, the weights are the edited model's."""

    def __init__(self, attack: Altering, target: Target) -> None:
        self.attack, self.target, self.done = attack, target, 0

    def step(self) -> None:
        self.done += 1

    @property
    def state(self) -> Mapping[str, Tensor]:
        return {"done": torch.tensor(self.done)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.done = int(state["done"])

    @torch.no_grad()
    def weights(self) -> dict[str, Tensor]:
        """Every parameter after the last step, by name."""
        model = self.target.model
        with self.target.deployed():
            found = {n: model.denoiser.get_parameter(n).clone() for n in model.select("all")}
        if self.done:
            amount = self.attack.amounts[self.done - 1]
            for name, weight in found.items():
                found[name] = self.attack.altered(weight, model.base_weight(name), amount)
        return found

    def found(self) -> Found:
        return Found(weights=self.weights())

    @property
    def over(self) -> bool:
        return self.done == len(self.attack.amounts)


Share = Annotated[float, Field(gt=0, lt=1)]


class Prune(Altering):
    """The smallest numbers of each matrix become zero (Han et al., NeurIPS 2015)."""

    name: ClassVar[str] = "prune"
    title: ClassVar[str] = "Pruning"
    year: ClassVar[int] = 2015
    url: ClassVar[str] = "https://arxiv.org/abs/1506.02626"
    knows: ClassVar[frozenset[Knows]] = frozenset({"weights"})
    unit: ClassVar[str] = "of the weights"

    shares: tuple[Share, ...] = Field((0.05, 0.1, 0.2, 0.3), min_length=1)
    """Of each matrix or kernel, which become zero; biases and norms stay."""

    @property
    def amounts(self) -> tuple[float, ...]:
        return self.shares

    def altered(self, weight: Tensor, base: Tensor, amount: float) -> Tensor:
        count = int(amount * weight.numel())
        if weight.ndim < 2 or not count:
            return weight
        smallest = weight.abs().flatten().argsort(stable=True)[:count]
        return weight.flatten().index_fill(0, smallest, 0.0).view_as(weight)


class Quantise(Altering):
    """Each row is rounded to the nearest of a few numbers, evenly spaced around zero."""

    name: ClassVar[str] = "quantise"
    title: ClassVar[str] = "Rounding to few bits"
    year: ClassVar[int] = 2022
    url: ClassVar[str] = "https://arxiv.org/abs/2208.07339"
    knows: ClassVar[frozenset[Knows]] = frozenset({"weights"})
    unit: ClassVar[str] = "bits"

    bits: tuple[Annotated[int, Field(ge=2, le=16)], ...] = Field((8, 6, 4), min_length=1)
    """Of each number of a matrix or kernel; biases and norms stay."""

    @property
    def amounts(self) -> tuple[float, ...]:
        return self.bits

    def altered(self, weight: Tensor, base: Tensor, amount: float) -> Tensor:
        if weight.ndim < 2:
            return weight
        rows, most = weight.flatten(1).float(), float(2 ** (int(amount) - 1) - 1)
        step = rows.abs().amax(1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny) / most
        return ((rows / step).round() * step).view_as(weight).to(weight.dtype)


class Average(Altering):
    """``W = (1 - share) W_edited + share W_base`` (model soups, Wortsman et al., ICML 2022)."""

    name: ClassVar[str] = "average"
    title: ClassVar[str] = "Averaging with the base"
    year: ClassVar[int] = 2022
    url: ClassVar[str] = "https://arxiv.org/abs/2203.05482"
    knows: ClassVar[frozenset[Knows]] = frozenset({"weights", "base"})
    unit: ClassVar[str] = "of the base"

    shares: tuple[Share, ...] = Field((0.1, 0.2, 0.3, 0.4, 0.5), min_length=1)
    """Of the base; at 1 it would be the base itself."""

    @property
    def amounts(self) -> tuple[float, ...]:
        return self.shares

    def check(self, target: Target) -> None:
        super().check(target)
        if target.edit is None:
            raise Unsupported("the base can't be averaged with itself")

    def altered(self, weight: Tensor, base: Tensor, amount: float) -> Tensor:
        return torch.lerp(weight, base, amount)
