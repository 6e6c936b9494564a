"""``expunge import``: turn a published erased model into an edit."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from expunge.concepts import Concept, Kind, explain
from expunge.edits.edit import Edit
from expunge.edits.membranes import Metric, Rule
from expunge.errors import ExpungeError
from expunge.files import check_output
from expunge.formats import adapters, cpe, published, spm
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
        (UCE 2025), a diffusers UNet folder (TRCE), a whole model in a single file, a LoRA
        (kohya's, LECO's, PEFT's, diffusers'), or a file of SPM's or CPE's, or a folder of such
        files.
    output:
        The edit file to write, e.g. published.safetensors.
    model:
        The base model that it was made from: "emoji", a folder, or a Hugging Face id.
    concept:
        What it claims to erase, for the edit's record; repeat it for more.
    kind:
        What the concepts are.
    rule:
        How SPM's membranes add up: as in the "paper" (the default) or the "released" program.
    metric:
        How a prompt's closeness to what a membrane erases is measured; "clipcos_tokenuni" by
        default.
    strength:
        Factor of that closeness.
    """
    safetensors_file(output)
    check_output(output, file)
    acts = {"rule": rule, "metric": metric, "strength": strength}
    given: dict[str, Any] = {name: value for name, value in acts.items() if value is not None}
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    if spm.recognised(file):
        if concept:
            raise ExpungeError("--concept: SPM's files name their own concepts; leave this out")
        edit = spm.load(file, load(model, whole=False), kind, **given)
        told = edit.summary()
    elif given:
        raise ExpungeError(f"--{min(given)}: only with a file of SPM's")
    elif cpe.recognised(file):
        edit = cpe.load(file, load(model, whole=False), _concepts(concept, kind), kind)
        told = edit.summary()
    elif kind and not concept:
        raise ExpungeError("--kind: name the --concept that it is about")
    elif adapters.recognised(file):
        edit = adapters.load(file, load(model, whole=False), _concepts(concept, kind))
        told = edit.summary()
    else:
        edit = published.load(file, load(model, whole=False), _concepts(concept, kind))
        told = _found(edit, model)
    edit.save(output)
    console.print(f"{output}: {told}")


def _concepts(targets: Sequence[str], kind: Kind | None) -> list[Concept]:
    known = {"kind": kind} if kind else {}
    try:
        return [Concept.model_validate({"target": words, **known}) for words in targets]
    except ValidationError as error:
        raise ExpungeError(explain(error)) from None


def _found(edit: Edit, model: str) -> str:
    """How much of the model differs from its base, in what form, and how exactly that fits."""
    found = edit.provenance[0].settings
    return (
        f"{found['parameters']['changed']} of {found['parameters']['read']} parameters "
        f"differ from {model}: {FORMS[found['form']]}, {edit.size / 1e6:.2f} MB, "
        f"off by {found['residual']:.1e} of the change"
    )


FORMS = {
    "shared_matrix": "all by one matrix",
    "low_rank": "by low-rank changes",
    "dense": "no simpler form, stored whole",
}
