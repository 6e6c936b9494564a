"""The documentation: the pages of this folder, and an API reference made from docstrings."""

import inspect
import re
from types import SimpleNamespace
from typing import Any, get_type_hints

from pydantic import BaseModel
from sphinx.application import Sphinx
from sphinx.ext.napoleon.docstring import GoogleDocstring
from sphinx.util.inspect import stringify_signature

import expunge

project = "Expunge"
release = expunge.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
]
templates_path = ["_templates"]
html_theme = "furo"
html_title = f"Expunge {release}"
html_show_copyright = False

myst_heading_anchors = 3
autodoc_default_options = {
    "members": True,
    "member-order": "bysource",
    "show-inheritance": True,
    "exclude-members": "model_config",
}
autodoc_typehints_format = "short"
toc_object_entries = False  # the tables of contents would take most of the time
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
# Or napoleon takes ``eta: how far from the concept`` for an attribute of the type eta.
GoogleDocstring._parse_attribute_docstring = GoogleDocstring._consume_to_end


def fields_as_callers_write_them(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str, returns: str
) -> tuple[str, str] | None:
    """Show a pydantic class, and then its fields, with types but without validators."""
    if what != "class" or not issubclass(obj, BaseModel):
        return None
    fields = {field: info.annotation for field, info in obj.model_fields.items()}
    hints = get_type_hints(SimpleNamespace(__annotations__=fields))
    obj.__annotations__ = {
        field: hints.get(field, hint) for field, hint in obj.__annotations__.items()
    }
    called = inspect.signature(obj)
    parameters = [
        parameter.replace(annotation=hints.get(parameter.name, parameter.annotation))
        for parameter in called.parameters.values()
    ]
    return stringify_signature(
        called.replace(parameters=parameters), unqualified_typehints=True
    ), ""


def types_as_callers_write_them(app: Sphinx, function: Any, bound: bool) -> None:
    """Show a function's types without validators."""
    try:
        function.__annotations__ = get_type_hints(function)
    except (AttributeError, NameError, TypeError):  # a built-in, or names for type checkers alone
        return


def without_what_named_tuples_say_themselves(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    if lines and lines[0].startswith("Alias for field number"):
        lines.clear()


def each_generic_class_once(
    app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any
) -> bool | None:
    """Leave out ``Loss[Student]``, which pydantic puts beside ``Loss``."""
    return True if "[" in name else None


def links_to_included_pages(app: Sphinx, page: str, source: list[str]) -> None:
    """Lead ``../CONTRIBUTING.md``, which GitHub needs, to the page here that includes it."""
    source[0] = re.sub(
        r"\]\((?:\.\./)+(CONTRIBUTING|CHANGELOG)\.md",
        lambda link: f"](/{link[1].lower()}.md",
        source[0],
    )


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-signature", fields_as_callers_write_them)
    app.connect("autodoc-before-process-signature", types_as_callers_write_them)
    app.connect("autodoc-process-docstring", without_what_named_tuples_say_themselves)
    app.connect("autodoc-skip-member", each_generic_class_once)
    app.connect("source-read", links_to_included_pages)
