"""``expunge export``: an edit in the formats of other programs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, cast

import torch
from rich.console import Console

from expunge.cli.options import EditedModelName
from expunge.edits.edit import Edit
from expunge.errors import ExpungeError
from expunge.files import check_output
from expunge.formats import cpe, lora, merged, published, spm
from expunge.formats.writing import free_folder, safetensors_file
from expunge.models import Model, load

Format = Literal["lora", "kohya", "peft", "diffusers", "checkpoint", "weights", "spm", "cpe"]
LORAS = ("lora", "kohya", "peft")
OWN = ("spm", "cpe")
"""Layouts that hold gates as they are."""
USES: Mapping[Format, str] = {
    "lora": 'pipe.load_lora_weights("{}")',
    "kohya": 'A1111 or ComfyUI, folder of LoRAs; or pipe.load_lora_weights("{}")',
    "peft": 'peft.PeftModel.from_pretrained(pipe.unet, "{}")',
    "diffusers": 'DiffusionPipeline.from_pretrained("{}")',
    "checkpoint": 'A1111 or ComfyUI; or StableDiffusionPipeline.from_single_file("{}")',
    "weights": 'pipe.unet.load_state_dict(safetensors.torch.load_file("{}"), strict=False)',
    "spm": "SPM's infer_spm.py --spm_path {}/*",
    "cpe": "CPE's generate_cpe.py --model_path {}",
}
"""How to load each format."""


def export(
    edit: Path,
    /,
    *,
    to: Format,
    output: Path,
    model: EditedModelName = "emoji",
    dtype: Literal["float32", "float16"] | None = None,
    rank: int | None = None,
    approximate: bool = False,
) -> None:
    """Write an edit in a format that other programs load.

    Without --rank, every format is exact up to rounding.

    Parameters
    ----------
    edit:
        An edit file.
    to:
        A LoRA for the unedited model: "lora" (diffusers), "kohya" (A1111, ComfyUI) or "peft". The
        whole edited model: "diffusers" (a folder) or "checkpoint" (one file). Only the edited
        UNet parameters: "weights". SPM's or CPE's own files: "spm" or "cpe".
    output:
        What to write: a new folder for "peft", "diffusers", "spm" and "cpe"; otherwise a
        .safetensors file.
    dtype:
        Precision of what is written. By default float32; for a whole model, that of its files.
    rank:
        Largest rank of a LoRA. How much that loses is printed and recorded in the file.
    approximate:
        Replace gates by weights. These do nearly the same for the prompts that the edit was made
        for. How far they are off is printed and recorded in the file.
    """
    if rank is not None and to not in LORAS:
        raise ExpungeError(f"--rank: only a LoRA has a rank, --to {to} is exact")
    into_folder = to in ("peft", "diffusers", *OWN)
    (free_folder if into_folder else safetensors_file)(output)
    check_output(output, edit, folder=into_folder)
    if approximate and to in OWN:
        raise ExpungeError(f"--approximate: --to {to} holds gates as they are")
    whole = to in ("diffusers", "checkpoint")
    loaded, base = Edit.load(edit), load(model, whole=whole)
    if approximate:
        loaded = _approximated(loaded, base)
    precision = getattr(torch, dtype) if dtype else None
    if to in LORAS:
        written = _lora(loaded, base, output, to, precision, rank)
    elif to == "weights":
        published.save(loaded, base, output, precision or torch.float32)
        written = f"{len(loaded.names)} edited parameters"
    elif to == "spm":
        files = spm.save(loaded, base, output, precision or torch.float32)
        written = f"{len(files)} membranes"
    elif to == "cpe":
        written = f"{len(cpe.save(loaded, base, output))} files of gates, float32"
    else:
        written = _whole(loaded, base, output, to, precision)
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    console.print(f"{output}: {written}, {_megabytes(output):.2f} MB")
    console.print(f"to load it: {USES[to].format(output)}")


def _approximated(edit: Edit, model: Model) -> Edit:
    """The edit with weights for gates; prints how far they are off."""
    from expunge.formats.approximate import approximated

    plain, gap = approximated(edit, model)
    kept = "nothing is named to keep, so what else changes isn't measured"
    if gap.kept is not None:
        kept = f"on {gap.kept_prompts} prompts to keep by {gap.kept:.2%} of the keys and values"
    Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(
        f"weights for gates: on {gap.erased_prompts} other prompts with the erased words off by "
        f"{gap.erased:.1%} of what the gates do; {kept}"
    )
    return plain


def _lora(
    edit: Edit,
    model: Model,
    output: Path,
    to: Format,
    precision: torch.dtype | None,
    rank: int | None,
) -> str:
    layout, precision = cast(lora.Layout, to), precision or torch.float32
    parts = lora.save(edit, model, output, layout, rank=rank, dtype=precision).values()
    ranks, worst = {part.rank for part in parts}, max(part.residual for part in parts)
    shown = f"{min(ranks)}" if len(ranks) == 1 else f"{min(ranks)} to {max(ranks)}"
    return (
        f"LoRA of {len(parts)} matrices, rank {shown}, {_name(precision)}, "
        f"off by {worst:.1e} of a matrix's change at most"
    )


def _whole(
    edit: Edit, model: Model, output: Path, to: Format, precision: torch.dtype | None
) -> str:
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging

    logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()  # it warns of a precision that isn't run here
    precision = precision or merged.stored_dtype(model)
    if precision != model.dtype:
        model.cast(precision)
    (merged.save_pipeline if to == "diffusers" else merged.save_checkpoint)(edit, model, output)
    return f"the whole model, {len(edit.names)} parameters edited, {_name(precision)}"


def _name(precision: torch.dtype) -> str:
    return str(precision).removeprefix("torch.")


def _megabytes(path: Path) -> float:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6
