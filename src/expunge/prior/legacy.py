"""Old caches of a prior's sums, as other programs wrote them."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from expunge.errors import ExpungeError
from expunge.files import PathLike
from expunge.models import Model
from expunge.prior.sums import Metadata, Prior, made_with, sound

AGREE = 1e-3
"""Single-precision sums of an old cache within this relative distance are the same."""
PLAIN = ("a brown dog sleeps on a sofa", "a bowl of fruit on a wooden table in the kitchen")
"""Ordinary captions, to estimate from the sum of an old cache how many captions it has."""


def imported(path: PathLike, model: Model) -> Prior:
    """Import an old cache: a torch file of ``{i}_for_mat1`` = ``W_i C``, ``{i}_for_mat2`` = C.

    ``i`` counts the cross-attention's value projections and then its key projections, each
    in the order down, up, middle.

    Args:
        path: the file; no code in it is run.
        model: the model that the cache was made with. The prior then serves all models with
            the same text encoder.

    Raises:
        ExpungeError: the file isn't such a cache, or is of another model.
    """
    cache, names = _pickled(path), model.values_then_keys()
    keys = {f"{i}_for_mat{n}" for i in range(len(names)) for n in (1, 2)}
    if cache.keys() != keys:
        raise ExpungeError(
            f"{path}: {len(cache)} tensors; a cache of this model has the {len(keys)} tensors "
            f"0_for_mat1 to {len(names) - 1}_for_mat2"
        )
    total = cache["0_for_mat2"].double()
    if total.shape != (model.text_width, model.text_width):
        raise ExpungeError(
            f"{path}: sums of shape {tuple(total.shape)}, this model has embeddings of width "
            f"{model.text_width}"
        )
    for i, name in enumerate(names):
        if not _near(cache[f"{i}_for_mat2"], total):
            raise ExpungeError(f"{path}: 0_for_mat2 and {i}_for_mat2 differ; the file is wrong")
        if not _near(cache[f"{i}_for_mat1"], model.base_weight(name).double().cpu() @ total):
            raise ExpungeError(
                f"{path}: {i}_for_mat1 isn't the {name} of this model times {i}_for_mat2; "
                "load the model that the cache was made with"
            )
    ordinary = model.encode(PLAIN).double()
    metadata = Metadata(
        text_encoder=model.text_fingerprint(),
        prompts=None,
        count=max(1, round(float(total.trace() * len(PLAIN) / ordinary.square().sum()))),
        positions=ordinary.shape[1],
        versions=made_with(),
    )
    return Prior(sound((total + total.T) / 2, str(path)), metadata)


def _near(one: Tensor, two: Tensor) -> bool:
    if one.shape != two.shape:
        return False
    return bool((one.double() - two).norm() <= AGREE * two.norm())


def _pickled(path: PathLike) -> Mapping[str, Tensor]:
    if not Path(path).is_file():
        raise ExpungeError(f"{path}: no such cache")
    try:
        # Opened here, as torch takes a file whose name ends .safetensors for one.
        with Path(path).open("rb") as file:
            cache = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged pickles raise whatever they like
        reason = (str(error) or type(error).__name__).partition("\n")[0][:200]
        raise ExpungeError(f"{path}: can't be read as a plain torch file: {reason}") from None
    if not isinstance(cache, dict) or not all(isinstance(t, Tensor) for t in cache.values()):
        raise ExpungeError(f"{path}: not a torch file of named tensors")
    return cache
