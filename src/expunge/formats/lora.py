"""An edit as LoRA files, which other programs add to the unedited model.

Every changed matrix (a convolution counts as the matrix ``[out, in * height * width]``) gets::

    W' = W + up @ down          up [out, rank], down [rank, in]

where ``up @ down`` is the sum of all changes of the edit, factored by an SVD in float64. The rank
is the smallest whose error is below the rounding of the written type: 6e-8 of the change in
float32, 5e-4 in float16. A cap on the rank makes the error larger. The error of the written tensors
is measured for every matrix and recorded in the file's header.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from expunge.edits.applied import edited
from expunge.edits.edit import Edit
from expunge.edits.payloads import Change, together
from expunge.errors import ExpungeError
from expunge.files import PathLike, replacing, write_json
from expunge.formats.writing import check_plain, metadata, new_folder, safetensors_file
from expunge.models import Model

Layout = Literal["lora", "kohya", "peft"]
"""diffusers' own file, the file of kohya's trainer (A1111, ComfyUI), or a PEFT folder."""


class Factors(NamedTuple):
    """One change as it is written: ``up`` ``[out, rank]``, ``down`` ``[rank, in]``.

    Those of a convolution are convolutions, ``[out, rank, 1, 1]`` and ``[rank, in, h, w]``.
    """

    up: Tensor
    down: Tensor
    residual: float
    """``|up @ down - change| / |change|`` in the Frobenius norm."""

    @property
    def rank(self) -> int:
        return len(self.down)


def factors(
    edit: Edit, model: Model, *, rank: int | None = None, dtype: torch.dtype = torch.float32
) -> dict[str, Factors]:
    """The factors of every changed matrix, by the name of its module.

    Raises:
        ExpungeError: the model isn't the edit's base, or something changes that is no matrix.
    """
    check_plain(edit)
    if rank is not None and rank < 1:
        raise ExpungeError(f"rank {rank}: a LoRA has a rank of at least 1")
    _check_matrices(edit, model)
    edit.check_base(model)
    payloads = together([part.payload for part in edit.components])
    written = {
        name.removesuffix(".weight"): _factors(payloads, name, model, rank, dtype)
        for name in edit.names
    }
    changed = {module: parts for module, parts in written.items() if parts.rank}
    if not changed:
        raise ExpungeError("this edit changes no weight; there is nothing to export")
    return changed


def save(
    edit: Edit,
    model: Model,
    path: PathLike,
    layout: Layout = "lora",
    *,
    rank: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Factors]:
    """Write one LoRA file, or for ``peft`` one folder; returns what was written.

    Raises:
        ExpungeError: see ``factors``; or the path doesn't suit the layout.
    """
    target = Path(path) if layout == "peft" else safetensors_file(path)
    parts = factors(edit, model, rank=rank, dtype=dtype)
    header = metadata(edit, residual={module: part.residual for module, part in parts.items()})
    if layout == "peft":
        with new_folder(target) as folder:
            write_json(folder / "adapter_config.json", _peft_config(parts))
            save_file(
                _named(parts, "base_model.model."), folder / "adapter_model.safetensors", header
            )
    else:
        tensors = _kohya(parts) if layout == "kohya" else _named(parts, "unet.")
        with replacing(target) as temporary:
            save_file(tensors, temporary, header)
    return parts


def _check_matrices(edit: Edit, model: Model) -> None:
    shapes = {name: parameter.ndim for name, parameter in model.denoiser.named_parameters()}
    others = [name for name in edit.names if shapes.get(name, 2) not in (2, 4)]
    if others:
        listed = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        raise ExpungeError(
            f"a LoRA holds changes of matrices and convolutions only, and this edit changes "
            f"{len(others)} biases or norms ({listed}); export the whole model instead: "
            "--to diffusers or --to checkpoint"
        )


def _factors(
    payloads: Sequence[Change], name: str, model: Model, rank: int | None, dtype: torch.dtype
) -> Factors:
    """The sum of all payloads' changes of one parameter."""
    weight = model.base_weight(name)
    parts = [payload for payload in payloads if name in payload.names]
    change = torch.stack([part.change(name, weight) for part in parts]).sum(0)
    edited(name, weight, change.clone())  # which refuses what isn't finite
    change = change.flatten(1)
    products = [part.low_rank(name, weight) for part in parts] if weight.ndim == 2 else []
    outer, values, inner = _svd(change, products)
    kept = min(_rank(values, torch.finfo(dtype).eps / 2), rank or len(values))
    scale = values[:kept].sqrt()  # half on each side, so that float16 doesn't overflow
    up = (outer[:, :kept] * scale).to("cpu", dtype).contiguous()
    down = (scale[:, None] * inner[:kept]).to("cpu", dtype).contiguous()
    rest = up.double() @ down.double() - change.cpu()
    residual = float(rest.norm() / change.norm()) if kept else 0.0
    if weight.ndim == 4:
        return Factors(up[:, :, None, None], down.reshape(kept, *weight.shape[1:]), residual)
    return Factors(up, down, residual)


def _svd(
    change: Tensor, products: Sequence[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor, Tensor]:
    """The thin SVD of a matrix, computed from the products that sum to it if they are thin."""
    if not products or sum(len(down) for _, down in products) >= min(change.shape):
        outer, values, inner = torch.linalg.svd(change, full_matrices=False)
        return outer, values, inner
    left, left_part = torch.linalg.qr(torch.cat([up for up, _ in products], 1))
    right, right_part = torch.linalg.qr(torch.cat([down for _, down in products]).T)
    outer, values, inner = torch.linalg.svd(left_part @ right_part.T)
    return left @ outer, values, inner @ right.T


def _rank(values: Tensor, rounding: float) -> int:
    """The smallest rank that leaves out no more than ``rounding`` of the norm."""
    rest = values.square().flip(0).cumsum(0).flip(0).sqrt()
    return int((rest > rounding * values.norm()).sum())


def _named(parts: Mapping[str, Factors], prefix: str) -> dict[str, Tensor]:
    """PEFT's names, which diffusers takes too."""
    downs = {f"{prefix}{module}.lora_A.weight": part.down for module, part in parts.items()}
    return downs | {f"{prefix}{module}.lora_B.weight": part.up for module, part in parts.items()}


def _kohya(parts: Mapping[str, Factors]) -> dict[str, Tensor]:
    """kohya's names, where each product counts ``alpha / rank`` times.

    ``alpha`` is the largest rank everywhere, since diffusers (0.42) loses an ``alpha`` that
    differs from the others'; smaller ranks are scaled for it.
    """
    alpha = max(part.rank for part in parts.values())
    tensors: dict[str, Tensor] = {}
    for module, part in parts.items():
        name = f"lora_unet_{module.replace('.', '_')}"
        tensors[f"{name}.lora_down.weight"] = part.down
        tensors[f"{name}.lora_up.weight"] = part.up * (part.rank / alpha)
        tensors[f"{name}.alpha"] = torch.tensor(float(alpha))
    return tensors


def _peft_config(parts: Mapping[str, Factors]) -> dict[str, Any]:
    """Only the settings that matter, so that older versions of PEFT can read it."""
    ranks = {module: part.rank for module, part in parts.items()}
    largest = max(ranks.values())
    smaller = {module: rank for module, rank in ranks.items() if rank < largest}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": largest,
        "lora_alpha": largest,
        "rank_pattern": smaller,
        "alpha_pattern": smaller,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(ranks),
    }
