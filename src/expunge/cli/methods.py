"""``expunge methods``: what can be chosen with ``expunge erase --method``."""

import json
from typing import Any

from pydantic_core import PydanticUndefined
from rich.console import Console
from rich.table import Table

from expunge.methods import METHODS
from expunge.methods.base import Method

_SHAPES = {"solve": "in closed form", "train": "by gradient descent"}


def methods() -> None:
    """List the methods with their settings, which "expunge erase" takes as --set name=value."""
    console = Console(highlight=False)
    for name in METHODS:
        method = METHODS.get(name)
        console.print(f"[bold]{name}[/bold]: {method.title} ({method.year}), {method.url}")
        console.print(f"  {method.shape}: {_SHAPES[method.shape]}")
        console.print(_settings(method))


def _settings(method: type[Method]) -> Table:
    table = Table("", "setting", "default", "meaning", box=None)
    for name, field in method.model_fields.items():
        table.add_row("", name, _as_set(field.default), field.description or "")
    return table


def _as_set(default: Any) -> str:
    """A default in the words that ``--set`` takes."""
    if default is PydanticUndefined:
        return "required"
    return default if isinstance(default, str) else json.dumps(default)
