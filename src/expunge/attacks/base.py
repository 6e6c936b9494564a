"""The contract between an attack and what runs it.

An attack looks for what makes an edited model draw the concept again. It *searches* for some of
the pictures at a time, step by step, so that whoever runs it counts what it costs, stops it, and
goes on with it later.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from expunge.attacks.found import Found
from expunge.attacks.target import Target

Knows = Literal["text encoder", "weights", "base", "pictures", "judge"]
"""What an attacker needs: the text encoder alone; the edited model's gradients (``weights``); the
model before the edit; pictures of the concept; an image-text model that isn't the judge."""


class Search(ABC):
    """The search for some pictures; a search that gets the state of another goes on as that one.

    Before its first step it has found where it began, which is its control.
    """

    @abstractmethod
    def step(self) -> None:
        """Go on by one step, whose random draws depend on its number and the seed alone."""

    @property
    @abstractmethod
    def state(self) -> Mapping[str, Tensor]:
        """All that the next step depends on."""

    @abstractmethod
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state.

        Raises:
            KeyError, ValueError, RuntimeError: it is none of this search.
        """

    @abstractmethod
    def found(self) -> Found:
        """The best so far."""

    @property
    def over(self) -> bool:
        """Whether another step would find nothing new."""
        return False


class Ready(Search):
    """What is found without a step."""

    def __init__(self, found: Found) -> None:
        self._found = found

    def step(self) -> None:
        """There is nothing to look for."""

    @property
    def state(self) -> Mapping[str, Tensor]:
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Nothing was kept."""

    def found(self) -> Found:
        return self._found

    @property
    def over(self) -> bool:
        return True


class Attack(BaseModel):
    """A published attack: its settings are the fields, its identity the class attributes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    title: ClassVar[str]
    year: ClassVar[int]
    url: ClassVar[str]
    knows: ClassVar[frozenset[Knows]]
    spends: ClassVar[bool] = True
    """Whether it calls the denoiser as it searches, so that it depends on the budget."""

    def view(self, target: Target) -> AbstractContextManager[None]:
        """Where it searches; what it finds is drawn with the model as it is deployed."""
        return target.deployed()

    def check(self, target: Target) -> None:
        """Check that it can attack this, before anything is computed.

        Raises:
            Unsupported: it is an attack on something that this edit or model doesn't have.
            ExpungeError: it lacks what it needs to know.
        """

    def groups(self, pictures: int) -> Sequence[Sequence[int]]:
        """The numbers of the pictures that each search is for; here each has its own."""
        return [[number] for number in range(pictures)]

    @abstractmethod
    def begin(self, target: Target, pictures: Sequence[int], seed: int) -> Search:
        """A search for these pictures of the target, before its first step."""


def turns(pictures: int, starts: int) -> list[list[int]]:
    """Pictures that ``starts`` searches share, one after the other."""
    return [list(range(start, pictures, starts)) for start in range(min(starts, pictures))]
