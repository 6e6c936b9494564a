"""The whole edited model: a diffusers folder, or one file in the original LDM layout."""

from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from expunge.edits.applied import check_unedited
from expunge.edits.edit import Edit
from expunge.errors import Unsupported
from expunge.files import PathLike, replacing, write_json
from expunge.formats import compvis
from expunge.formats.writing import (
    check_plain,
    metadata,
    new_folder,
    record,
    safetensors_file,
)
from expunge.models import Model
from expunge.models.sources import WEIGHTS

RECORD_FILE = "expunge.json"
"""Name of the file that records the edit, beside the merged model."""


def save_pipeline(edit: Edit, model: Model, path: PathLike) -> None:
    """Write the user's pipeline with edited weights; every part keeps its own precision.

    Raises:
        ExpungeError: the model isn't the edit's base, or there is something at ``path``.
    """
    check_plain(edit)
    _check_unedited(model)
    with new_folder(path) as folder, edit.applied(model):
        model.save(folder)
        write_json(folder / RECORD_FILE, record(edit))


def save_checkpoint(edit: Edit, model: Model, path: PathLike) -> None:
    """Write one file that A1111, ComfyUI and diffusers' ``from_single_file`` read.

    Raises:
        ExpungeError: the model isn't the edit's base, or has parts that the layout can't hold.
    """
    check_plain(edit)
    _check_unedited(model)
    target = safetensors_file(path)
    with edit.applied(model), replacing(target) as temporary:
        tensors = {name: value.cpu().contiguous() for name, value in _ldm_state(model).items()}
        save_file(tensors, temporary, metadata=metadata(edit))


def _ldm_state(model: Model) -> dict[str, Tensor]:
    networks: dict[str, Any] = model.networks
    unet, encoder = model.denoiser.state_dict(), networks["text_encoder"]
    names = compvis.ldm_names(unet, networks["unet"].config.layers_per_block)
    # The two text encoders differ in this: OpenAI's CLIP in 1.x, LAION's OpenCLIP in 2.x.
    layouts = {"quick_gelu": compvis.clip, "gelu": compvis.open_clip}
    if encoder.config.hidden_act not in layouts:
        raise Unsupported(
            f"the text encoder is neither that of Stable Diffusion 1.x nor that of 2.x (its "
            f"activation is {encoder.config.hidden_act}); export --to diffusers instead"
        )
    text = layouts[encoder.config.hidden_act](encoder.state_dict())
    weights = {names[name]: value for name, value in unet.items()}
    return weights | compvis.vae(networks["vae"].state_dict()) | text


def _check_unedited(model: Model) -> None:
    check_unedited(model, "the export applies its own")


def stored_dtype(model: Model) -> torch.dtype:
    """The precision of the files that the UNet was loaded from, or else its current one."""
    names = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
    files = [path for path in model.source.glob("*.safetensors") if WEIGHTS.fullmatch(path.name)]
    for path in sorted(files, key=lambda path: len(path.name)):
        with safe_open(path, framework="pt") as file:
            first = next(iter(file.keys()))
            return names.get(file.get_slice(first).get_dtype(), model.dtype)
    return model.dtype
