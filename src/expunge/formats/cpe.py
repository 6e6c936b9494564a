"""Residual attention gates in CPE's published layout: one safetensors file per concept.

Its tensors are::

    attention_gate.encoder_layer.slf_attn.attention_module1.w_qs.weight   [1, width, gate rank]
    attention_gate.encoder_layer.slf_attn.attention_module1.w_ks.weight   the same, never used
    attention_gate.encoder_layer.slf_attn.gate.scaler.weight              [1, width, 1]
    lora_unet_{layer}.lora_down.weight, .lora_up.weight, .alpha           for every key and value

with ``prompts`` (the concept), ``rank`` and ``alpha`` in the header. A layer's addition is scaled
by ``alpha / rank``. Files of one training are in folders named after their concepts.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from expunge.concepts import Concept, Kind, explain
from expunge.edits.base import Base
from expunge.edits.component import Component
from expunge.edits.edit import Edit
from expunge.edits.residual_gates import ResidualGates
from expunge.errors import ExpungeError
from expunge.files import PathLike
from expunge.formats.imported import imported
from expunge.formats.writing import RECORD, metadata, new_folder
from expunge.models import Model

MODULE = "attention_gate.encoder_layer.slf_attn."
QUERY = f"{MODULE}attention_module1.w_qs.weight"
KEY = f"{MODULE}attention_module1.w_ks.weight"
GATE = f"{MODULE}gate.scaler.weight"
ENDING = "_last.safetensors"
"""Ending of the names of files that hold a finished training."""
ALPHA = 1.0
"""The ``alpha`` of all published files."""


class File(NamedTuple):
    """The content of a file."""

    path: Path
    header: Mapping[str, str]
    tensors: Mapping[str, Tensor]


def recognised(path: PathLike) -> bool:
    """Whether ``path`` is such a file, or a folder that holds some."""
    found = _paths(Path(path))
    if not found:
        return False
    try:
        with safe_open(found[0], framework="pt") as file:
            return GATE in file.keys()  # noqa: SIM118
    except (SafetensorError, OSError):
        return False


def load(
    path: PathLike, model: Model, concepts: Sequence[Concept] = (), kind: Kind | None = None
) -> Edit:
    """The edit of a published file, or of all files in a folder; each concept is its own part.

    The parts are in the order of the files' paths, which decides between equal gates.

    Args:
        path: a file, or a folder with files ``*_last.safetensors`` anywhere in it.
        model: the base that they were trained for.
        concepts: what they erase, in that order; by default what their headers say.
        kind: of the concepts that the headers name.

    Raises:
        ExpungeError: a file isn't in this layout, is damaged, or is for another model.
    """
    files = [_read(file) for file in _paths(Path(path))]
    if not files:
        raise ExpungeError(f"{path}: no file *{ENDING} in it")
    if concepts and len(concepts) != len(files):
        raise ExpungeError(f"{path}: {len(concepts)} concepts for {len(files)} files of one each")
    named = concepts or [_concept(file, kind) for file in files]
    names = model.select("cross_attention.kv")
    base = Base.of(model, names, reads_text=True)
    return Edit(
        tuple(
            _component(file, gates(file.path, file.tensors, model), concept, base)
            for file, concept in zip(files, named, strict=True)
        )
    )


def gates(path: PathLike, tensors: Mapping[str, Tensor], model: Model) -> ResidualGates:
    """The gates of one concept from the tensors of a file."""
    layers = {_key(name): name for name in model.select("cross_attention.kv")}
    wanted = {QUERY, KEY, GATE}
    wanted |= {f"{key}.{end}" for key in layers for end in _FACTORS}
    if lacking := sorted(wanted - {KEY} - tensors.keys()):
        raise ExpungeError(
            f"{path}: lacks {len(lacking)} tensors, e.g. {lacking[0]!r}; it is cut short or for "
            f"another model than {model.name!r}"
        )
    if foreign := sorted(tensors.keys() - wanted):
        raise ExpungeError(
            f"{path}: {len(foreign)} tensors have no place in {model.name!r}, e.g. {foreign[0]!r}"
        )
    width, outputs = model.text_width, [len(model.base_weight(name)) for name in layers.values()]
    h = tensors[f"{next(iter(layers))}.lora_down.weight"].shape[-1]
    shapes = {QUERY: (1, width, tensors[QUERY].shape[-1]), GATE: (1, width, 1)}
    for key, out in zip(layers, outputs, strict=True):
        shapes |= {f"{key}.lora_down.weight": (1, width, h), f"{key}.lora_up.weight": (1, h, out)}
    for key, shape in shapes.items():
        if tuple(tensors[key].shape) != shape:
            raise ExpungeError(
                f"{path}: {key} has shape {tuple(tensors[key].shape)} where {model.name!r} needs "
                f"{shape}; it is for another model"
            )
        if not bool(torch.isfinite(tensors[key]).all()):
            raise ExpungeError(f"{path}: {key} holds numbers that aren't finite")
    up = [tensors[f"{key}.lora_up.weight"] * (tensors[f"{key}.alpha"] / h) for key in layers]
    down = [tensors[f"{key}.lora_down.weight"].mT for key in layers]
    return ResidualGates(
        names=tuple(layers.values()),
        query=tensors[QUERY].mT.float().contiguous(),
        key=None,
        gate=tensors[GATE][..., 0].float().contiguous(),
        down=torch.stack(down, 1).float().contiguous(),
        up=torch.cat(up, -1).float().contiguous(),
        widths=tuple(outputs),
    )


def save(edit: Edit, model: Model, path: PathLike) -> list[Path]:
    """Write a folder with a file for every concept; returns the files' paths.

    Raises:
        ExpungeError: the edit holds anything but residual gates of one concept each, the layout
            can't express the gates, or the model isn't the edit's base.
    """
    edit.check_base(model)
    described = [_described(component) for component in edit.components]
    if len({name for name, _, _ in described}) < len(described):
        raise ExpungeError("two concepts would have the same file; export them one by one")
    with new_folder(path) as folder:
        for name, concept, payload in described:
            (folder / name).parent.mkdir()
            header = {
                "prompts": concept.target,
                "rank": str(payload.up.shape[1]),
                "alpha": str(ALPHA),
            }
            record = {RECORD: metadata(edit)[RECORD]} if len(described) == 1 else {}
            save_file(tensors(payload), folder / name, {**header, **record})
    return [Path(path) / name for name, _, _ in described]


_FACTORS = ("lora_down.weight", "lora_up.weight", "alpha")


def _key(name: str) -> str:
    """What a layer's factors are called, from the name of its weight."""
    return f"lora_unet_{name.removesuffix('.weight').replace('.', '_')}"


def _paths(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = (file for file in path.rglob(f"*{ENDING}") if "adv_prompts" not in file.name)
    return sorted(found, key=str)


def _read(path: Path) -> File:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return File(path, file.metadata() or {}, tensors)
    except SafetensorError as error:
        raise ExpungeError(f"{path}: not a safetensors file, or cut short ({error})") from None


def _concept(file: File, kind: Kind | None) -> Concept:
    try:
        return Concept(target=file.header.get("prompts", ""), kind=kind or "object")
    except ValidationError as error:
        raise ExpungeError(
            f"{file.path}: its header names no concept ({explain(error)}); say it with --concept"
        ) from None


def _component(file: File, payload: ResidualGates, concept: Concept, base: Base) -> Component:
    ranks = {"gate_rank": payload.query.shape[1], "adapter_rank": payload.up.shape[1]}
    return imported(payload, file.path, base, [concept], **ranks, tied=True)


def _described(component: Component) -> tuple[str, Concept, ResidualGates]:
    """Where a component goes in the folder, its concept and its gates."""
    payload, concepts = component.payload, component.provenance.concepts
    if not isinstance(payload, ResidualGates):
        raise ExpungeError(
            f"this layout holds residual attention gates, and a part of the edit is "
            f"{payload.form!r}; export the gates alone"
        )
    if len(payload) != 1 or len(concepts) != 1:
        raise ExpungeError("this layout holds one concept a file, and a part of the edit has more")
    if payload.key is not None:
        raise ExpungeError(
            "these gates have a key map of their own (tied=false), which programs that read this "
            "layout never use: they would erase something else"
        )
    folder = re.sub(r"[/\0]|^\.+$", "_", "_".join(concepts[0].target.split()))
    return f"{folder}/expunge{ENDING}", concepts[0], payload


def tensors(payload: ResidualGates) -> dict[str, Tensor]:
    rank = payload.up.shape[1]
    tensors = {
        QUERY: payload.query.mT.contiguous(),
        KEY: torch.zeros_like(payload.query.mT).contiguous(),
        GATE: payload.gate[..., None].contiguous(),
    }
    for layer, (name, up) in enumerate(zip(payload.names, payload.ups, strict=True)):
        factors = (payload.down[:, layer].mT, up * (rank / ALPHA), torch.tensor(ALPHA))
        for ending, factor in zip(_FACTORS, factors, strict=True):
            tensors[f"{_key(name)}.{ending}"] = factor.contiguous()
    return tensors
