"""The prior that closed forms take by default: everyday prompts, summed once per text encoder.

The sums lie in the user's cache; those of the bundled model come with the package. Prompts that
name what is erased are left out: their rows are subtracted from the sums.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import PlainSerializer, PlainValidator
from torch import Tensor

from expunge.edits.ridge import LeftOut
from expunge.errors import ExpungeError
from expunge.files import cache_folder, digest
from expunge.models import Model
from expunge.models.emoji import prior_folder
from expunge.prior.sums import Prior, weighed
from expunge.prompts.everyday import everyday, naming

PROMPTS = 1000
"""Everyday prompts in the sums; with more, edits of the bundled model change by a few percent."""
PADDING = 4
"""Rows of padding that are encoded of each, the last of which stands for the others."""
THIN = 1e-5
"""Directions of a prompt's rows below this share of the largest are rounding errors."""


def everyday_prior(model: Model) -> Prior:
    """The prior of everyday prompts for a model's text encoder, computed or from a file.

    A computation that was stopped continues. Several processes may compute it at once.
    """
    prompts = listed()
    precision = str(model.text_encoders[0].network.dtype).removeprefix("torch.")
    encoder = model.text_fingerprint()
    name = f"prior-{encoder[:16]}-{digest(list(prompts))[:8]}-{precision}"
    for folder in (prior_folder(), cache_folder()):
        if found := _kept(folder / f"{name}.safetensors", encoder):
            return found
    state = cache_folder() / f"{name}.unfinished.safetensors"
    return _computed(model, prompts, cache_folder() / f"{name}.safetensors", state)


def _kept(path: Path, encoder: str) -> Prior | None:
    """The prior in a file, if it is whole and of this text encoder and these prompts."""
    try:
        found = Prior.load(path)
    except ExpungeError:
        return None
    return found if found.metadata.text_encoder == encoder and is_everyday(found) else None


def _computed(model: Model, prompts: tuple[str, ...], path: Path, state: Path) -> Prior:
    """The prior of some prompts, written to ``path`` where that is possible."""
    try:
        made = Prior.of(model, prompts, padding=PADDING, checkpoint=state)
    except (ExpungeError, OSError):  # a broken state, or a folder that can't be written
        made = Prior.of(model, prompts, padding=PADDING)
    try:
        made.save(path)
        state.unlink(missing_ok=True)
    except OSError:  # the numbers are right all the same; next time they are computed again
        pass
    return made


def listed() -> tuple[str, ...]:
    """The everyday prompts in the sums."""
    return everyday()[:PROMPTS]


def is_everyday(prior: Prior) -> bool:
    """Whether a prior is of the everyday prompts."""
    return (prior.metadata.prompts, prior.metadata.padding) == (digest(list(listed())), PADDING)


def left_out(model: Model, prior: Prior, phrases: Iterable[str]) -> LeftOut | None:
    """The prompts of a prior that name what is erased, to be taken out of its sums.

    Only everyday prompts are known; a prior from other prompts holds nothing but sums.
    """
    prompts = listed()
    numbers = naming(prompts, phrases) if is_everyday(prior) else []
    if not numbers:
        return None
    named = [prompts[at] for at in numbers]
    rows = [_thin(one) for one in weighed(model, named, PADDING)]
    counts = torch.tensor([len(own) for own in rows])
    return LeftOut(torch.tensor(numbers), counts, torch.cat(rows))


def _thin(rows: Tensor) -> Tensor:
    """The fewest rows with the same Gram matrix, ``[rank, width]``, as precise as the sums."""
    _, values, basis = torch.linalg.svd(rows.double(), full_matrices=False)
    rank = int((values > THIN * values[0]).sum())
    thin: Tensor = (values[:, None] * basis)[:rank].float().contiguous()
    return thin


def _read(value: Any) -> Any:
    if value in (None, "none"):
        return None
    if isinstance(value, Prior) or value == "default":
        return value
    if isinstance(value, str | os.PathLike):
        return Prior.load(value)
    raise ValueError("should be default, none, a Prior, or the file of one")


def _recorded(prior: Any) -> Any:
    return prior.metadata.model_dump(mode="json") if isinstance(prior, Prior) else prior


PriorSetting = Annotated[
    Prior | Literal["default"] | None, PlainValidator(_read), PlainSerializer(_recorded)
]
"""A setting that is ``default``, ``none``, a ``Prior`` or the path of one."""
