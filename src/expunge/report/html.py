"""A report as one self-contained HTML file, with pictures, styles and plot inside."""

import io
import os
import re
from base64 import b64encode
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from expunge.errors import ExpungeError
from expunge.evaluation.records import Report
from expunge.files import write_text
from expunge.report.pictures import opened
from expunge.report.words import cell, change, headline, keep_list, question, subject

if TYPE_CHECKING:
    from jinja2 import Environment
    from jinja2.nodes import EvalContext

FILE = "report.html"


def to_html(report: Report, *, blur: bool = True) -> str:
    """The whole page.

    Args:
        report: what to show.
        blur: blur the pictures of sensitive prompts; they can't be unblurred in the page.

    Raises:
        ExpungeError: a picture is gone, or jinja2 isn't installed.
    """
    pages = environment()
    pages.globals.update(
        headline=headline,
        question=question,
        cell=cell,
        change=change,
        keep_list=keep_list,
        subject=subject,
    )
    pages.filters["picture"] = lambda shown, pair: _uri(opened(shown, pair, blur=blur))
    return pages.get_template("report.html.j2").render(report=report, blur=blur)


def environment() -> "Environment":
    """The jinja2 environment with the pages' templates.

    Raises:
        ExpungeError: jinja2 isn't installed.
    """
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined, pass_eval_context
        from markupsafe import Markup
    except ImportError:
        raise ExpungeError("a report needs jinja2; pip install 'expunge[report]'") from None

    @pass_eval_context
    def finalize(context: "EvalContext", value: Any) -> Any:
        return value if context.autoescape or isinstance(value, Markup) else _in_markdown(value)

    pages = Environment(
        finalize=finalize,
        loader=PackageLoader("expunge.report"),
        autoescape=lambda name: name is not None and ".md" not in name,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters["tight"] = lambda text: text.replace(" %", "\N{NO-BREAK SPACE}%")
    return pages


def _in_markdown(value: Any) -> str:
    """Text that Markdown shows as it is, on one line, also in a table."""
    return re.sub(r"[\\`*\[\]<>|&]", r"\\\g<0>", " ".join(str(value).splitlines()))


def write_html(report: Report, path: str | os.PathLike[str], *, blur: bool = True) -> Path:
    """Write ``to_html(report)`` and return its path."""
    write_text(path, to_html(report, blur=blur))
    return Path(path)


def _uri(image: Image.Image) -> str:
    data = io.BytesIO()
    image.save(data, "PNG", optimize=True)
    return f"data:image/png;base64,{b64encode(data.getvalue()).decode()}"
