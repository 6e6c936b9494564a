"""``expunge methods``: what can be chosen with ``expunge erase --method`` and ``--preset``."""

import json
from collections.abc import Mapping
from typing import Any

from pydantic_core import PydanticUndefined
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from expunge.method.base import Method, Trained
from expunge.method.presets import presets
from expunge.methods import METHODS
from expunge.settings import meanings


def methods(name: str | None = None, /) -> None:
    """List the methods, or the settings and presets of one.

    "expunge erase" takes a setting as --set name=value and a preset as --preset NAME.

    Parameters
    ----------
    name:
        The method to show, e.g. esd; by default all of them.
    """
    console = Console(highlight=False, soft_wrap=True)
    if name is not None:
        _show(console, METHODS.get(name))
        return
    for each in METHODS:
        _head(console, METHODS.get(each))
    console.print("\nSettings and presets of one: expunge methods NAME")


def _head(console: Console, method: type[Method]) -> None:
    console.print(f"[bold]{method.name}[/bold]: {method.title} ({method.year}), {method.url}")
    console.print(f"  {cost(method)}")


def cost(method: type[Method]) -> str:
    """What a method does with its defaults and how many steps it takes, in a few words."""
    field = method.model_fields.get("iterations")
    if field is None:
        return "solves in seconds"
    steps = _as_set(field.default)
    if not issubclass(method, Trained):  # the field's docstring says what is repeated
        return f"solves, with {steps} {_clause(meanings(method)['iterations'])}"
    most = "at most " if method.finished is not Trained.finished else ""
    size = method.model_fields.get("batch_size")
    batches = f", batches of {_as_set(size.default)}" if size else ""
    return f"trains: {most}{steps} steps{batches}"


def _clause(meaning: str) -> str:
    return meaning[0].lower() + meaning[1:].rstrip(".")


def _show(console: Console, method: type[Method]) -> None:
    _head(console, method)
    console.print()
    settings = Table("setting", "default", "meaning", box=None, pad_edge=False)
    told = meanings(method)
    for name, field in method.model_fields.items():
        settings.add_row(name, escape(_as_set(field.default)), escape(told[name]))
    console.print(settings)
    for preset in presets(method).values():
        console.print(
            f"\npreset [bold]{preset.name}[/bold]: {preset.kind}, for {preset.model}, "
            f"fidelity {preset.fidelity}"
        )
        console.print(f"  {escape(preset.source)}")
        console.print(f"  {escape(_assigned(preset.settings))}")
        if preset.corrected:
            console.print(f"  when corrected {escape(_assigned(preset.corrected))}")


def _assigned(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_as_set(value)}" for name, value in settings.items())


def _as_set(value: Any) -> str:
    """A value in the words that ``--set`` takes."""
    if value is PydanticUndefined:
        return "required"
    return value if isinstance(value, str) else json.dumps(value).removesuffix(".0")
