"""Erase concepts from text-to-image diffusion models, measure what is left, keep a small edit."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from expunge.concepts import Concept as Concept
    from expunge.concepts import Policy as Policy
    from expunge.edits.edit import Edit as Edit
    from expunge.errors import ExpungeError as ExpungeError
    from expunge.evaluation.evaluate import evaluate as evaluate
    from expunge.generation.store import generate as generate
    from expunge.methods import erase as erase
    from expunge.models import Model as Model
    from expunge.models import load as load

__version__ = "0.1.0"

_PUBLIC = {
    "Concept": "expunge.concepts",
    "Edit": "expunge.edits.edit",
    "ExpungeError": "expunge.errors",
    "Model": "expunge.models",
    "Policy": "expunge.concepts",
    "erase": "expunge.methods",
    "evaluate": "expunge.evaluation.evaluate",
    "generate": "expunge.generation.store",
    "load": "expunge.models",
}
"""Where each public name comes from; type checkers read the same from the imports above."""

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: importing the package costs milliseconds."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'expunge' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
