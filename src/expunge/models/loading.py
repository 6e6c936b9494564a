"""``load``: a model from a name, a folder, a hub id or a live pipeline."""

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from expunge.errors import ExpungeError, Unsupported
from expunge.models import on_disk, sources
from expunge.models.model import Model
from expunge.models.sources import Source
from expunge.registry import Registry

FAMILIES: Registry[type[Model]] = Registry(
    "model family",
    {
        "StableDiffusionPipeline": "expunge.models.stable_diffusion:StableDiffusion",
        "StableDiffusionInpaintPipeline": "expunge.models.stable_diffusion:StableDiffusion",
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
    whole: bool = True,
) -> Model:
    """A model from ``"emoji"`` (the bundled one), a folder, a file, a hub id, or a live pipeline.

    Of a folder that has only the files of one variant (``fp16``), these are read; ``FOLDER@fp16``
    names one of several. A single file (``.safetensors``, ``.ckpt``) needs a model of its kind for
    the configuration, ``FILE@FOLDER``; our own exports name theirs.

    Args:
        source: a live pipeline is taken as it is, without a change of ``dtype`` or ``device``. Its
            networks are frozen (evaluation mode, no gradients) only while they are used here, and
            have their own flags again after that.
        dtype: precision of the weights.
        device: ``"auto"`` takes a GPU when there is one; each of several launched processes
            takes its own.
        whole: whether the model draws, learns or is changed. If not, prompts are read and base
            weights are asked for; then what isn't needed stays on disk where that is possible
            (see ``models.on_disk``), and is refused when it is asked for.

    Raises:
        ExpungeError: nothing loadable is there, no family has its pipeline, or there are fewer
            GPUs than processes.
    """
    if not isinstance(source, str | os.PathLike):
        return _model(source, type(source).__name__)
    name = str(source)
    found = sources.source(_folder(name))
    where = _own_device() if device == "auto" else device
    if not whole and (part := on_disk.opened(found, dtype, torch.device(where))):
        return FAMILIES.get("StableDiffusionPipeline")(part, name)
    try:
        with quietly():
            pipe = _single(found, dtype) if found.single else _pretrained(found, dtype)
    except pickle.UnpicklingError:
        raise ExpungeError(
            f"{name}: holds more than tensors, and reading that could run code; get the model as "
            "safetensors"
        ) from None
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ExpungeError(f"can't load the model {name!r}: {reason}") from error
    pipe.set_progress_bar_config(disable=True)
    model = _model(pipe.to(where), name)
    for network in (model.denoiser, *model.parts):
        network.requires_grad_(False).eval()
    return model


def _folder(name: str) -> str:
    """``emoji`` as the folder of the bundled model; any other name as it is."""
    if name != "emoji":
        return name
    from expunge.models.emoji import pipeline_path

    return str(pipeline_path())


def _pretrained(source: Source, dtype: torch.dtype) -> Any:
    from diffusers import DiffusionPipeline

    return DiffusionPipeline.from_pretrained(
        source.place,
        dtype=dtype,
        variant=source.variant,
        local_files_only=source.local,
        safety_checker=None,
    )


def _single(source: Source, dtype: torch.dtype) -> Any:
    """The pipeline of a single file, of the class that its configuration's folder names."""
    import diffusers

    config = _folder(source.base)
    here = Path(config).expanduser()
    known = diffusers.DiffusionPipeline.load_config(str(here) if here.is_dir() else config)
    return getattr(diffusers, known["_class_name"]).from_single_file(
        source.place,
        config=str(here) if here.is_dir() else config,
        torch_dtype=dtype,
        local_files_only=here.is_dir(),
        safety_checker=None,
    )


def _model(pipe: Any, name: str) -> Model:
    """The view of a pipeline that its family has.

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
    return FAMILIES.get(known[0])(pipe, name)


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
