"""Settings given as a value or as the path of a file that holds it, and what they mean."""

import ast
import inspect
import os
from collections.abc import Callable, Iterator
from itertools import pairwise
from textwrap import dedent
from typing import Any

from pydantic import BaseModel, BeforeValidator

from expunge.files import PathLike


def or_file(
    read: Callable[[PathLike], Any], *, names_file: Callable[[str], bool] = lambda text: True
) -> BeforeValidator:
    """Validates a setting that is a value, or the path of a file that ``read`` opens.

    Args:
        read: opens the file; an ``ExpungeError`` of it is a fault of the setting.
        names_file: whether a text is a path; by default every text is.
    """

    def opened(value: Any) -> Any:
        is_path = isinstance(value, os.PathLike) or (isinstance(value, str) and names_file(value))
        return read(value) if is_path else value

    return BeforeValidator(opened)


def meanings(kind: type[BaseModel]) -> dict[str, str]:
    """The docstrings of a class's fields, those of its bases among them, each in one line.

    pydantic would read every class's source when it is defined, which all commands would wait for.
    """
    fields = kind.model_fields
    found = {name: field.description or "" for name, field in fields.items()}
    for each in reversed(kind.__mro__):
        if issubclass(each, BaseModel) and each is not BaseModel:
            found.update(_documented(each))
    return {name: found[name] for name in fields}


def _documented(kind: type) -> Iterator[tuple[str, str]]:
    try:
        source = dedent(inspect.getsource(kind))
    except OSError:  # it was defined where there is none
        return
    [definition] = ast.parse(source).body
    statements = definition.body if isinstance(definition, ast.ClassDef) else []
    for field, after in pairwise(statements):
        match field, after:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                yield name, " ".join(text.split())
