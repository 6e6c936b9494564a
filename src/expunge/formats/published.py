"""Published erased models as edits, and edits in the layout that UCE (2025) is published in.

A published result is a whole UNet or a part of it: a state dict saved by torch (UCE 2023, RECE,
ESD), a safetensors file of the edited matrices (UCE 2025, ESD 2025), or a diffusers UNet folder
(TRCE). Compared with its base it is reduced to the smallest of three forms that is exact to
``TOLERANCE`` of the change:

1. If only keys and values of the cross-attention changed, and closed-form methods changed them,
   every matrix is ``W = W0 M`` with one ``M``. The best ``M - I`` of a given rank minimises
   ``sum |W0 (M - I) - (W - W0)|^2`` over all layers, by a Cholesky factor of
   ``G = sum W0^T W0`` and one SVD. It gets as many directions as stand out of the fit's residual.
2. Low-rank changes, if that halves the file.
3. The whole changes.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from expunge.algebra.ridge import gram
from expunge.concepts import Concept
from expunge.edits.applied import check_unedited, edited_weights
from expunge.edits.base import Base
from expunge.edits.edit import Edit
from expunge.edits.payloads import Change, Dense, LowRank, SharedMatrix
from expunge.errors import ExpungeError
from expunge.files import PathLike, replacing
from expunge.formats import compvis
from expunge.formats.imported import imported
from expunge.formats.reading import read
from expunge.formats.writing import check_plain, metadata, safetensors_file
from expunge.models import Model

TOLERANCE = 2e-3
"""Share of the change, in the Frobenius norm, that a smaller form may miss. Single-precision
programs are themselves off by up to about 1e-3."""

UNRELATED = 0.5
"""If the change exceeds this share of the weights, and one matrix for all layers misses more than
this share of it, the file is of another model."""

Changes = Mapping[str, Tensor]


def save(edit: Edit, model: Model, path: PathLike, dtype: torch.dtype = torch.float32) -> None:
    """Write the edited parameters alone, by their UNet names, as UCE (2025) does.

    ``unet.load_state_dict(load_file(path), strict=False)`` puts them in.

    Raises:
        ExpungeError: the model isn't the edit's base.
    """
    check_plain(edit)
    target = safetensors_file(path)
    edit.check_base(model)
    with replacing(target) as temporary:
        edited = edited_weights(model, edit.components, edit.names)
        tensors = {n: w.to("cpu", dtype).contiguous() for n, w in edited.items() if w is not None}
        save_file(tensors, temporary, metadata=metadata(edit))


def load(path: PathLike, model: Model, concepts: Iterable[Concept] = ()) -> Edit:
    """The edit that turns ``model`` into the published result at ``path``.

    ``concepts`` is what the result claims to erase; it is recorded. The provenance also says how
    exact the edit is: ``residual`` is ``|edited - published| / |published - base|``.

    Raises:
        ExpungeError: the file is no such result, needs code to be read, or has another base.
    """
    check_unedited(model, "results compare with a base")
    weights = _checked(path, read(Path(path)), model)
    if Path(path).is_dir() and (
        missing := dict(model.denoiser.named_parameters()).keys() - weights
    ):
        raise ExpungeError(
            f"{path}: {len(missing)} weights of {model.name!r} are missing, e.g. {min(missing)}"
        )
    changes = _changes(weights, model)
    if not changes:
        raise ExpungeError(f"{path}: its weights are those of {model.name!r}; nothing is erased")
    payload = _payload(path, changes, model)
    settings = {
        "parameters": {"read": len(weights), "changed": len(changes)},
        "residual": _residual(payload, weights, model),
    }
    base = Base.of(model, payload.names, payload.reads_text)
    return Edit((imported(payload, Path(path), base, concepts, **settings),))


def _checked(path: PathLike, weights: Mapping[str, Tensor], model: Model) -> dict[str, Tensor]:
    """The weights in the order of the model's own, if they can be an edit of it."""
    shapes = {name: weight.shape for name, weight in model.denoiser.named_parameters()}
    if not weights:
        raise ExpungeError(f"{path}: holds no tensor")
    if any(name.startswith(compvis.UNET) for name in weights):
        weights = compvis.unet(weights, shapes, model.networks["unet"].config)
    if foreign := [name for name in weights if name not in shapes]:
        raise ExpungeError(
            f"{path}: {len(foreign)} of {len(weights)} tensors aren't of the UNet of "
            f"{model.name!r}, e.g. {foreign[0]!r}"
        )
    for name, weight in weights.items():
        if weight.shape != shapes[name]:
            raise ExpungeError(
                f"{path}: {name} has shape {tuple(weight.shape)}, in {model.name!r} "
                f"{tuple(shapes[name])}; it was made from another model"
            )
        if not bool(torch.isfinite(weight).all()):
            raise ExpungeError(f"{path}: {name} holds numbers that aren't finite")
    return {name: weights[name] for name in shapes if name in weights}


# --- reducing


def _changes(weights: Mapping[str, Tensor], model: Model) -> dict[str, Tensor]:
    """What is added to each base weight, float32, for those that differ by more than rounding.

    If one side was rounded to half precision once, both are compared so.
    """
    base = {name: model.base_weight(name).cpu() for name in weights}
    rounded = max(_precision(base), _precision(weights), key=lambda kind: torch.finfo(kind).eps)
    return {
        name: (weight.double() - base[name].double()).float()
        for name, weight in weights.items()
        if not torch.equal(weight.to(rounded), base[name].to(rounded))
    }


def _precision(weights: Mapping[str, Tensor]) -> torch.dtype:
    """The coarsest precision that holds all these numbers as they are."""
    for kind in (torch.bfloat16, torch.float16):
        if all(torch.equal(w.to(kind).double(), w.double()) for w in weights.values()):
            return kind
    return torch.float32


class Fit(NamedTuple):
    """``M = I + left^T right`` for all matrices, and the part of the change that it misses."""

    left: Tensor
    right: Tensor
    residual: float


def _payload(path: PathLike, changes: Changes, model: Model) -> Change:
    """The smallest form that is exact enough."""
    missed = 1.0
    if set(changes) <= set(model.select("cross_attention.kv")) and (fit := _fit(changes, model)):
        if fit.residual <= TOLERANCE:
            return SharedMatrix(tuple(changes), fit.left, fit.right)
        missed = fit.residual
    part = _norm(changes.values()) / _norm(model.base_weight(name) for name in changes)
    if part > UNRELATED and missed > UNRELATED:
        raise ExpungeError(
            f"{path}: differs from {model.name!r} by {part:.0%} of the weights, in no common way; "
            "it was made from another model"
        )
    return _low_rank(changes) or Dense(changes)


def _fit(changes: Changes, model: Model) -> Fit | None:
    """Reduced-rank regression of the changes ``[out, width]`` on the base weights, float64.

    With ``G = L L^T``, ``|W0 N|^2 = |L^T N|^2`` over all layers, so the best ``N`` of a rank are
    the first directions of ``L^T N = L^-1 sum W0^T (W - W0)``.
    """
    base = {name: model.base_weight(name).cpu().double() for name in changes}
    lower, failed = torch.linalg.cholesky_ex(sum(map(gram, base.values())))
    if bool(failed):
        return None
    moved = sum(base[name].T @ change.double() for name, change in changes.items())
    whitened = torch.linalg.solve_triangular(lower, moved, upper=False)
    outer, values, inner = torch.linalg.svd(whitened)
    total = _norm(changes.values())
    missed = max(total**2 - float(values.square().sum()), 0) ** 0.5
    rest = values.square().flip(0).cumsum(0).flip(0).sqrt()
    rank = max(1, int((rest > max(missed, 1e-8 * total)).sum()))
    left = torch.linalg.solve_triangular(lower.T, outer[:, :rank] * values[:rank], upper=True).T
    dropped = float(values[rank:].norm())
    return Fit(
        left.contiguous(), inner[:rank].contiguous(), (missed**2 + dropped**2) ** 0.5 / total
    )


def _low_rank(changes: Changes) -> LowRank | None:
    """Factors of every change, if all are matrices and the factors take half the space."""
    if any(change.ndim != 2 for change in changes.values()):
        return None
    up, down, space = {}, {}, sum(change.numel() for change in changes.values())
    for name, change in changes.items():
        outer, values, inner = torch.linalg.svd(change.double(), full_matrices=False)
        rest = values.square().flip(0).cumsum(0).flip(0).sqrt()
        rank = int((rest > TOLERANCE * values.norm()).sum())
        up[name] = (outer[:, :rank] * values[:rank]).float().contiguous()
        down[name] = inner[:rank].float().contiguous()
        space -= 2 * (up[name].numel() + down[name].numel())
        if space < 0:
            return None
    return LowRank(up, down)


def _residual(payload: Change, weights: Mapping[str, Tensor], model: Model) -> float:
    """``|edited - published| / |published - base|`` over all changed parameters."""
    wanted, missed = {}, {}
    for name in payload.names:
        base = model.base_weight(name)
        wanted[name] = weights[name].double() - base.cpu().double()
        missed[name] = payload.change(name, base).cpu() - wanted[name]
    return _norm(missed.values()) / _norm(wanted.values())


def _norm(tensors: Iterable[Tensor]) -> float:
    return float(torch.stack([tensor.double().norm().cpu() for tensor in tensors]).norm())
