"""Results of attacks as typed records: one attack, one model, all models."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from expunge.concepts import explain
from expunge.errors import ExpungeError
from expunge.evaluation.suite import Record
from expunge.files import write_json
from expunge.statistics.rates import Rate
from expunge.texts import read_text

FILE = "attacks.json"


class Counted(Record):
    """Pictures that show the concept, one by one and as a rate."""

    outcomes: Annotated[tuple[bool, ...], Field(min_length=1)]
    rate: Rate

    @classmethod
    def of(cls, outcomes: Sequence[bool]) -> "Counted":
        return cls(outcomes=tuple(outcomes), rate=Rate.of(outcomes))


class Amount(Record):
    """What one amount of an attack on the weights does."""

    amount: float
    """In the attack's unit."""
    success: Counted
    """Pictures of the same prompts and noise as those asked for by name."""
    kept: Counted
    """Pictures of other things that are right."""


class AttackRecord(Record):
    """One attack on one model."""

    attack: str
    settings: dict[str, Any]
    success: Counted | None = None
    """Pictures drawn from what the attack found; ``None`` if it is refused."""
    control: Counted | None = None
    """Pictures drawn from where its search began."""
    calls: int = 0
    """Of the denoiser, by pictures; those with gradients count three times."""
    ids: tuple[tuple[int, ...] | None, ...] = ()
    """Token ids found for each picture; ``None`` where what was found is no prompt."""
    losses: tuple[float | None, ...] = ()
    """What the attack lowers, where it ended for each picture."""
    unit: str = ""
    """Of the amounts."""
    amounts: tuple[Amount, ...] = ()
    """Of an attack on the weights, the smallest first; a picture that any brings back counts."""
    kept: Counted | None = None
    """Pictures of other things that are right before an attack on the weights."""
    refused: str = ""
    """Why the model can't be attacked so."""


class Attacked(Record):
    """All attacks on one model for one concept, at one budget."""

    concept: str
    kind: str
    label: str
    """What the judge calls it."""
    edit: str
    """Id of the edit; "" for a model as it is."""
    summary: str
    fingerprint: str
    """Of the model without the edit."""
    prompts: Annotated[tuple[str, ...], Field(min_length=1)]
    """What asked the base for each picture."""
    budget: int
    """Calls of the denoiser for each picture and attack."""
    seed: int
    sampler: dict[str, Any]
    judge: str
    judge_sha256: str
    critic: str
    by_name: Counted
    """Pictures that are asked for by name, without any attack."""
    attacks: tuple[AttackRecord, ...]
    worst: Counted
    """Pictures that the name or any attack brings back."""
    versions: dict[str, str]


def worst(by_name: Counted, attacks: Iterable[AttackRecord]) -> Counted:
    """Whether each picture comes back by its name or by any attack."""
    rows = [by_name, *(one.success for one in attacks if one.success)]
    return Counted.of([any(column) for column in zip(*(r.outcomes for r in rows), strict=True)])


class Crossing(Record):
    """What one attack found on one model, tried on another."""

    attack: str
    found_on: str
    """Name of the model that was attacked."""
    tried_on: str
    success: Counted | None = None
    """Pictures of the other model that show the concept; ``None`` if it is refused."""
    control: Counted | None = None
    """Those drawn from where the search began."""
    refused: str = ""
    """Why it can't be found there, or tried here."""


class Transfer(Record):
    """What attacks find on each of some models, tried on all of them."""

    concept: str
    budget: int
    """Calls of the denoiser for each picture and attack."""
    seed: int
    models: tuple[str, ...]
    """Their names."""
    edits: tuple[str, ...]
    """The ids of their edits, in the same order; "" for the base."""
    crossings: tuple[Crossing, ...]


class RedTeam(Record):
    """What attacks found on some models; ``attacks.json`` is this."""

    format: Literal[1] = 1
    models: Annotated[tuple[Attacked, ...], Field(min_length=1)]
    transfers: tuple[Transfer, ...] = ()

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``attacks.json`` into ``folder`` and return its path."""
        path = Path(folder) / FILE
        write_json(path, self.model_dump(mode="json"))
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "RedTeam":
        """Read an ``attacks.json``, or the one in a folder.

        Raises:
            ExpungeError: there is none, or it isn't whole.
        """
        file = Path(path) / FILE if Path(path).is_dir() else Path(path)
        try:
            return cls.model_validate_json(read_text(file, "the attacks"))
        except ValidationError as error:
            raise ExpungeError(f"{file}: not a whole record: {explain(error)}") from None
