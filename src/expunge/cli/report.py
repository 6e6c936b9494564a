"""``expunge report``: one page from one or several evaluations."""

from functools import reduce
from operator import add
from pathlib import Path

from rich.console import Console

from expunge.cli.options import ShowSensitive
from expunge.errors import ExpungeError
from expunge.evaluation.records import FILE as JSON
from expunge.evaluation.records import Report
from expunge.files import check_output
from expunge.report.html import FILE, write_html


def report(
    *folders: Path, output: Path | None = None, show_sensitive: ShowSensitive = False
) -> None:
    """Write the HTML page of one or several evaluations.

    Parameters
    ----------
    folders:
        Folders of "expunge evaluate", or report.json files.
    output:
        The page to write; by default report.html in the first folder.
    """
    if not folders:
        raise ExpungeError("say which evaluation to show, e.g. expunge report runs/eval")
    first = folders[0] if folders[0].is_dir() else folders[0].parent
    place = output or first / FILE
    check_output(place, *folders, *(folder / JSON for folder in folders))
    merged = reduce(add, (Report.load(folder) for folder in folders))
    page = write_html(merged, place, blur=not show_sensitive)
    Console(stderr=True, markup=False).print(f"written: {page}", highlight=False)
