"""``expunge compose``: add edits up, or take parts out again."""

from functools import reduce
from operator import add, sub
from pathlib import Path

from rich.console import Console

from expunge.edits.edit import Edit
from expunge.errors import ExpungeError
from expunge.files import check_output
from expunge.formats.writing import safetensors_file


def compose(
    *edits: Path,
    output: Path,
    without: tuple[Path, ...] = (),
    only: tuple[str, ...] = (),
    without_concept: tuple[str, ...] = (),
) -> None:
    """Add edits up, subtract some from the sum, or keep the parts of some concepts.

    Closed-form edits are solved together: the sum is the edit that erases all concepts in one call.

    Parameters
    ----------
    edits:
        Edit files of the same base.
    output:
        The edit file to write, e.g. both.safetensors.
    without:
        An edit file to subtract from the sum; repeat it for more.
    only:
        Keep only the part that erases this concept; repeat it for more.
    without_concept:
        Remove the part that erases this concept, so that it is drawn again; repeat it for more.
    """
    safetensors_file(output)
    check_output(output, *edits, *without)
    if not edits:
        raise ExpungeError("say which edits to add up, e.g. expunge compose a.safetensors ...")
    total = reduce(add, map(Edit.load, edits))
    result = reduce(sub, map(Edit.load, without), total)
    if only:
        result = result.only(*only)
    if without_concept:
        result = result.without(*without_concept)
    result.save(output)
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    console.print(f"{output}: {result.summary()}")
    console.print(f"parts: {', '.join(result.ids)}")
