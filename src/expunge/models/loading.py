"""``load``: a model from a name, a folder, a hub id or a live pipeline."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from expunge.errors import ExpungeError, Unsupported
from expunge.models.model import Model
from expunge.registry import Registry

FAMILIES: Registry[type[Model]] = Registry(
    "model family",
    {
        "StableDiffusionPipeline": "expunge.models.stable_diffusion:StableDiffusion",
        "StableDiffusionXLPipeline": "expunge.models.sdxl:SDXL",
    },
    entry_points="expunge.models",
)
"""The family of each pipeline class, and of its subclasses."""


def load(
    source: Any = "emoji",
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "auto",
) -> Model:
    """A model from ``"emoji"`` (the bundled one), a folder, a hub id, or a live pipeline.

    Args:
        source: a live pipeline is taken as it is, without a change of ``dtype`` or ``device``.
        dtype: precision of the weights.
        device: ``"auto"`` takes a GPU when there is one; each of several launched processes
            takes its own.

    Raises:
        ExpungeError: nothing loadable is there, no family has its pipeline, or there are fewer
            GPUs than processes.
    """
    if not isinstance(source, str | os.PathLike):
        return _model(source, type(source).__name__)
    from diffusers import DiffusionPipeline

    place = str(source)
    if place == "emoji":
        from expunge.models.emoji import pipeline_path

        folder = str(pipeline_path())
    else:
        folder = place
    local = Path(folder).is_dir()
    if not local and (Path(folder).exists() or folder.startswith((".", "/")) or "/" not in folder):
        raise ExpungeError(
            f"no model at {place!r}; give 'emoji', a folder with a model_index.json, or a hub id"
        )
    try:
        with quietly():
            pipe = DiffusionPipeline.from_pretrained(
                folder, dtype=dtype, local_files_only=local, safety_checker=None
            )
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ExpungeError(f"can't load the model {place!r}: {reason}") from error
    pipe.set_progress_bar_config(disable=True)
    where = _own_device() if device == "auto" else device
    return _model(pipe.to(where), place)


def _model(pipe: Any, name: str) -> Model:
    """The view of a pipeline that its family has; its networks are frozen.

    Raises:
        Unsupported: no family has it.
    """
    classes = [kind.__name__ for kind in type(pipe).__mro__]
    known = [kind for kind in classes if kind in FAMILIES.places]
    if not known:
        raise Unsupported(
            f"{name!r} is a {classes[0]}; known are {', '.join(FAMILIES)}, and what packages add "
            "under the entry points expunge.models"
        )
    model = FAMILIES.get(known[0])(pipe, name)
    for part in (model.denoiser, *model.parts):
        part.requires_grad_(False).eval()
    return model


def _own_device() -> str:
    """The CPU, or the GPU of this process, which launchers count in ``LOCAL_RANK``."""
    if not torch.cuda.is_available():
        return "cpu"
    number, count = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if number >= count:
        raise ExpungeError(f"process {number + 1} has no GPU, there are {count}; launch fewer")
    return f"cuda:{number}"


@contextmanager
def quietly() -> Iterator[None]:
    """Keep loading bars and remarks about unused image processors off the user's screen."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    before = [library.get_verbosity() for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, verbosity in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)
            library.enable_progress_bar()
