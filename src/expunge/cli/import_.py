"""``expunge import``: an edit from a published erased model."""

from pathlib import Path

from pydantic import ValidationError
from rich.console import Console

from expunge.concepts import Concept, Kind, explain
from expunge.errors import ExpungeError
from expunge.formats import published
from expunge.formats.writing import safetensors_file
from expunge.models import load


def import_(
    file: Path,
    /,
    *,
    output: Path,
    model: str = "emoji",
    concept: tuple[str, ...] = (),
    kind: Kind | None = None,
) -> None:
    """Turn a published erased model into an edit of its base.

    Parameters
    ----------
    file:
        A UNet state dict (.pt of UCE 2023, RECE or ESD), a safetensors file of edited parameters
        (UCE 2025), or a diffusers UNet folder (TRCE).
    output:
        The edit file to write, e.g. published.safetensors.
    model:
        The base that it was made from: "emoji", a folder, or a Hugging Face id.
    concept:
        What it claims to erase, for the record; repeat it for more.
    kind:
        What the concepts are.
    """
    safetensors_file(output)
    if kind and not concept:
        raise ExpungeError("--kind: say of which --concept")
    known = {"kind": kind} if kind else {}
    try:
        concepts = [Concept.model_validate({"target": words, **known}) for words in concept]
    except ValidationError as error:
        raise ExpungeError(explain(error)) from None
    edit = published.load(file, load(model), concepts)
    edit.save(output)
    found = edit.provenance[0].settings
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    console.print(
        f"{output}: {found['parameters']['changed']} of {found['parameters']['read']} parameters "
        f"differ from {model}: {FORMS[found['form']]}, {edit.size / 1e6:.2f} MB, "
        f"off by {found['residual']:.1e} of the change"
    )


FORMS = {
    "shared_matrix": "all by one matrix",
    "low_rank": "by low-rank changes",
    "dense": "no simpler form, stored whole",
}
