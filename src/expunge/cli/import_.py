"""``expunge import``: an edit from a published erased model."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from expunge.concepts import Concept, Kind, explain
from expunge.edits.membranes import Metric, Rule
from expunge.errors import ExpungeError
from expunge.formats import cpe, published, spm
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
    rule: Rule | None = None,
    metric: Metric | None = None,
    strength: float | None = None,
) -> None:
    """Turn a published erased model into an edit of its base.

    Parameters
    ----------
    file:
        A UNet state dict (.pt of UCE 2023, RECE or ESD), a safetensors file of edited parameters
        (UCE 2025), a diffusers UNet folder (TRCE), or a file of SPM's or CPE's or a folder
        of them.
    output:
        The edit file to write, e.g. published.safetensors.
    model:
        The base that it was made from: "emoji", a folder, or a Hugging Face id.
    concept:
        What it claims to erase, for the record; repeat it for more.
    kind:
        What the concepts are.
    rule:
        How SPM's membranes add up: as in its "paper" (the default), or in the "released" program.
    metric:
        How close a prompt is to what a membrane erases; "clipcos_tokenuni" by default.
    strength:
        Factor of that closeness.
    """
    safetensors_file(output)
    acts = {"rule": rule, "metric": metric, "strength": strength}
    given: dict[str, Any] = {name: value for name, value in acts.items() if value is not None}
    if spm.recognised(file):
        if concept:
            raise ExpungeError("--concept: files of SPM's name their own concepts")
        membranes = spm.load(file, load(model), kind, **given)
        membranes.save(output)
        Console(stderr=True, highlight=False, soft_wrap=True).print(
            f"{output}: {membranes.summary()}"
        )
        return
    if given:
        raise ExpungeError(f"--{min(given)}: only with a file of SPM's")
    if kind and not concept and not cpe.recognised(file):
        raise ExpungeError("--kind: say of which --concept")
    known = {"kind": kind} if kind else {}
    try:
        concepts = [Concept.model_validate({"target": words, **known}) for words in concept]
    except ValidationError as error:
        raise ExpungeError(explain(error)) from None
    if cpe.recognised(file):
        gates = cpe.load(file, load(model), concepts, kind)
        gates.save(output)
        Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(
            f"{output}: {gates.summary()}"
        )
        return
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
