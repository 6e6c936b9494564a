"""What a bench compares: methods x tasks x seeds, and how it attacks them; from a file."""

import os
from collections.abc import Sequence
from importlib.resources import files
from typing import Annotated, Any, NamedTuple

from pydantic import Field, ValidationError

from expunge.attacks import configured
from expunge.attacks.base import Attack
from expunge.concepts import Policy, explain
from expunge.errors import ExpungeError
from expunge.evaluation.suite import Record
from expunge.files import file_name
from expunge.generation import Sampler
from expunge.methods import METHODS
from expunge.texts import read_yaml


class Task(Record):
    """Concepts that are erased together."""

    erase: Policy
    methods: tuple[str, ...] = ()
    """Replace the bench's methods for this task."""
    seeds: tuple[int, ...] = ()


class AttackPlan(Record):
    """How edits are attacked."""

    tasks: Annotated[tuple[str, ...], Field(min_length=1)]
    """Tasks of one concept each."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    pictures: Annotated[int, Field(ge=1)]
    """How many are attacked for each task and seed."""
    budgets: Annotated[dict[str, Annotated[int, Field(ge=1)]], Field(min_length=1)]
    """Calls of the denoiser for each picture and attack, by the name of the budget."""
    attacks: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    """Settings by attack."""

    def configured(self) -> list[Attack]:
        """The attacks.

        Raises:
            ExpungeError: an attack or a setting is unknown.
        """
        return [configured(name, **settings) for name, settings in self.attacks.items()]

    def calls(self, budget: str) -> int:
        """Of the denoiser, by the name of a budget.

        Raises:
            ExpungeError: there is no such budget.
        """
        if budget not in self.budgets:
            known = ", ".join(self.budgets)
            raise ExpungeError(f"the bench has no attack budget {budget!r}; it has {known}")
        return self.budgets[budget]


class Cell(NamedTuple):
    """One edit of the table."""

    method: str
    task: str
    seed: int

    def __str__(self) -> str:
        return f"{self.method} on {self.task}, seed {self.seed}"

    @property
    def stem(self) -> str:
        """How its files' names begin."""
        return f"{file_name(self.method)}-{file_name(self.task)}-{self.seed}"


class Bench(Record):
    """What is compared, and how it is measured."""

    suite: str
    size: str
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    """Each decides the training and the pictures' noise."""
    sampler: Sampler = Sampler()
    """Its gaps are filled in by the model."""
    methods: Annotated[tuple[str, ...], Field(min_length=1)]
    """A sum of edits is written with a plus, e.g. ``trce-steering + uce``."""
    tasks: Annotated[dict[str, Task], Field(min_length=1)]
    attack: AttackPlan | None = None

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None = None) -> "Bench":
        """Read a YAML file, by default the project's own.

        Raises:
            ExpungeError: it can't be read, or an entry is wrong or unknown.
        """
        content = read_yaml(path or files(__package__).joinpath("emoji.yaml"), "the bench")
        try:
            tasks = {
                name: {**task, "erase": {"erase": task["erase"]}}
                for name, task in content["tasks"].items()
            }
            bench = cls.model_validate({**content, "tasks": tasks})
        except ValidationError as error:
            raise ExpungeError(f"{path or 'bench.yaml'}: {explain(error)}") from None
        except (TypeError, KeyError, AttributeError):
            raise ExpungeError(
                f"{path}: a bench is a mapping with the entries {', '.join(cls.model_fields)}; "
                "each of its tasks has the entry erase"
            ) from None
        for method in bench.known_methods:
            for part in parts(method):
                METHODS.get(part)
        bench._check_attack()
        return bench

    def _check_attack(self) -> None:
        """Check that what is attacked is in the bench, one concept at a time."""
        if self.attack is None:
            return
        self.attack.configured()
        self.cells(tasks=self.attack.tasks, seeds=self.attack.seeds)
        for name in self.attack.tasks:
            if len(self.tasks[name].erase.erase) != 1:
                raise ExpungeError(f"attack: {name!r} erases several things; attack one at a time")

    @property
    def known_methods(self) -> tuple[str, ...]:
        """The bench's own methods, then those of single tasks."""
        own = (method for task in self.tasks.values() for method in task.methods)
        return tuple(dict.fromkeys((*self.methods, *own)))

    @property
    def attacked(self) -> AttackPlan:
        """How edits are attacked.

        Raises:
            ExpungeError: the bench doesn't say.
        """
        if self.attack is None:
            raise ExpungeError("the bench has no entry attack: it doesn't say how to attack")
        return self.attack

    def cells(
        self, methods: Sequence[str] = (), tasks: Sequence[str] = (), seeds: Sequence[int] = ()
    ) -> list[Cell]:
        """All cells, or those of some methods, tasks and seeds; seed by seed, task by task.

        Raises:
            ExpungeError: there is no such method or task in the bench, or no such cell.
        """
        for asked, known, noun in (
            (methods, self.known_methods, "method"),
            (tasks, self.tasks, "task"),
        ):
            if missing := [name for name in asked if name not in known]:
                raise ExpungeError(
                    f"the bench has no {noun} {missing[0]!r}; it has {', '.join(known)}"
                )
        cells = [
            Cell(method, name, seed)
            for name, task in self.tasks.items()
            for seed in task.seeds or self.seeds
            for method in task.methods or self.methods
            if (not methods or method in methods)
            and (not tasks or name in tasks)
            and (not seeds or seed in seeds)
        ]
        if not cells:
            raise ExpungeError("no such cell in the bench: nothing would be measured")
        return sorted(cells, key=lambda cell: cell.seed)  # stable: a first whole table comes early


def parts(method: str) -> tuple[str, ...]:
    """The methods whose edits are added up, of which there is usually one."""
    return tuple(part.strip() for part in method.split("+"))
