"""SPM's own files: the adapters of one membrane in kohya's layout, its phrases in the header.

For each layer ``lora_unet_<path>.lora_down.weight``, ``.lora_up.weight`` and ``.alpha``, where
``<path>`` is the layer's name with underscores for dots; ``prompts`` in the header are the erased
phrases, separated by commas. A file doesn't say how membranes add up or what closeness
is: those are settings of the drawing program.
"""

import re
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from expunge.concepts import Concept, Kind
from expunge.edits.base import Base
from expunge.edits.component import Component
from expunge.edits.edit import Edit
from expunge.edits.membranes import Membranes, Metric, Rule
from expunge.errors import ExpungeError
from expunge.files import PathLike
from expunge.formats.imported import imported
from expunge.formats.writing import metadata, new_folder
from expunge.models import Model

PARTS = ("lora_down.weight", "lora_up.weight", "alpha")


class Adapters(NamedTuple):
    """What a file holds."""

    up: dict[str, Tensor]
    """``[out, rank]`` by the name of the weight, with ``alpha / rank`` in it."""
    down: dict[str, Tensor]
    """``[rank, in]``."""
    phrases: tuple[str, ...]


def recognised(path: PathLike) -> bool:
    """Whether ``path`` is such a file, or a folder of such files."""
    files = _files(path)
    return bool(files) and all(map(_is_one, files))


def load(
    path: PathLike,
    model: Model,
    kind: Kind | None = None,
    *,
    rule: Rule = "paper",
    metric: Metric = "clipcos_tokenuni",
    strength: float = 1.0,
) -> Edit:
    """The edit of a published file, or of all files in a folder; each file is its own part.

    Args:
        path: a file, or a folder of files.
        model: the base that they were made from.
        kind: what the concepts are, for the record.
        rule: how membranes add up; the published pictures follow "released".
        metric: what closeness is.
        strength: factor of the closeness ("facilitate_factor").

    Raises:
        ExpungeError: a file isn't in this layout, or is for another model.
    """
    if not recognised(path):
        raise ExpungeError(f"{path}: no SPM file (kohya's names, and 'prompts' in the header)")
    acts: dict[str, Any] = {"rule": rule, "metric": metric, "strength": strength}
    base = cache(partial(Base.of, model, reads_text=True))
    return Edit(tuple(_component(file, model, kind, acts, base) for file in _files(path)))


def _component(
    file: Path,
    model: Model,
    kind: Kind | None,
    acts: dict[str, Any],
    base: Callable[[tuple[str, ...]], Base],
) -> Component:
    found = read(file, model)
    payload = Membranes.made(
        found.up,
        found.down,
        model.encode(found.phrases),
        model.tokenized(found.phrases),
        **acts,
    )
    concepts = [Concept(target=words, kind=kind or "object") for words in found.phrases]
    return imported(payload, file, base(payload.names), concepts, **acts)


def read(path: PathLike, model: Model) -> Adapters:
    """What one file holds, by the names of the model's weights.

    Raises:
        ExpungeError: it is damaged, or for another model.
    """
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = file.metadata()
    listed = (phrase.strip() for phrase in header["prompts"].split(","))
    phrases = tuple(dict.fromkeys(phrase for phrase in listed if phrase))
    if not phrases:
        raise ExpungeError(f"{path}: the header names no phrase, so nothing says when to open it")
    layers = _layers(model)
    up, down = {}, {}
    for layer in dict.fromkeys(name.partition(".")[0] for name in tensors):
        if layer not in layers:
            raise ExpungeError(f"{path}: {model.name!r} has no layer for {layer!r}; wrong base?")
        name = layers[layer]
        up[name], down[name] = _factors(path, layer, tensors, model.base_weight(name))
    if len(ranks := {len(factor) for factor in down.values()}) > 1:
        raise ExpungeError(f"{path}: has layers of different ranks, {min(ranks)} to {max(ranks)}")
    return Adapters(up, down, phrases)


def _factors(
    path: PathLike, layer: str, tensors: Mapping[str, Tensor], weight: Tensor
) -> tuple[Tensor, Tensor]:
    """One layer's ``U`` times ``alpha / rank`` and ``D``, float32."""
    try:
        down, up, alpha = (tensors[f"{layer}.{part}"] for part in PARTS)
    except KeyError as error:
        raise ExpungeError(f"{path}: lacks {error}; the file is damaged") from None
    up, down = up.float().flatten(1), down.float().flatten(1)
    fits = weight.flatten(1).shape == (len(up), down.shape[1]) and up.shape[1] == len(down)
    if not fits:
        raise ExpungeError(
            f"{path}: {layer} is for a layer of {down.shape[1]} to {len(up)}, here "
            f"{weight.shape[1]} to {len(weight)}; it was made from another model"
        )
    if not bool(torch.isfinite(up).all() and torch.isfinite(down).all()):
        raise ExpungeError(f"{path}: {layer} holds numbers that aren't finite")
    return up * (float(alpha) / len(down)), down


def save(
    edit: Edit, model: Model, path: PathLike, dtype: torch.dtype = torch.float32
) -> list[Path]:
    """Write a new folder with a file for every membrane of an edit; returns the files' paths.

    Raises:
        ExpungeError: the edit isn't made of membranes alone, or the model isn't its base.
    """
    edit.check_base(model)
    parts = [_written(component, model, dtype) for component in edit.components]
    with new_folder(path) as folder:
        for part in parts:
            save_file(part.tensors, folder / part.name, part.header)
    return [Path(path) / part.name for part in parts]


class _File(NamedTuple):
    tensors: dict[str, Tensor]
    header: dict[str, str]
    name: str


def _written(component: Component, model: Model, dtype: torch.dtype) -> _File:
    """One membrane as a file; ``alpha`` is the rank, so that its factors count as they are."""
    payload = component.payload
    if not isinstance(payload, Membranes) or len(payload.strengths) > 1:
        raise ExpungeError(
            f"component {component.id} ({component.provenance.method}) isn't a membrane of SPM; "
            "only such can be written as its files"
        )
    phrases = [phrase for concept in component.provenance.concepts for phrase in concept.phrases]
    if wrong := [phrase for phrase in phrases if "," in phrase]:
        raise ExpungeError(f"{wrong[0]!r}: SPM's files separate phrases by commas")
    alpha = float(len(payload.owners))
    tensors: dict[str, Tensor] = {}
    for name in payload.names:
        layer, ends = key(name), model.base_weight(name).shape[2:]
        for part, factor in zip(PARTS, (payload.down[name], payload.up[name]), strict=False):
            tensors[f"{layer}.{part}"] = factor.to(dtype).reshape(*factor.shape, *ends).contiguous()
        tensors[f"{layer}.alpha"] = torch.tensor(alpha)
    acts = {"rule": payload.rule, "metric": payload.metric, "strength": float(payload.strengths)}
    header = {
        "prompts": ",".join(phrases),
        "rank": str(len(payload.owners)),
        "alpha": str(alpha),
        **metadata(Edit((component,)), **acts),
    }
    stem = re.sub(r"\W+", "-", phrases[0]).strip("-")
    return _File(tensors, header, f"{stem}-{component.id[:6]}.safetensors")


def _layers(model: Model) -> dict[str, str]:
    """Names of weights by the keys that files have for their layers.

    A key has underscores for the dots of a name, which has underscores of its own; only the
    model knows which is which.
    """
    keys: dict[str, str] = {}
    for name in model.select("transformers"):
        if key(name) in keys:
            raise ExpungeError(f"{model.name!r} has two layers that a file calls {key(name)!r}")
        keys[key(name)] = name
    return keys


def key(name: str) -> str:
    """What a file calls the layer of a weight."""
    return f"lora_unet_{name.removesuffix('.weight').replace('.', '_')}"


def _files(path: PathLike) -> list[Path]:
    place = Path(path)
    return [place] if place.is_file() else sorted(place.glob("*.safetensors"))


def _is_one(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            return bool(names) and "prompts" in (file.metadata() or {}) and all(map(_own, names))
    except (SafetensorError, OSError):
        return False


def _own(name: str) -> bool:
    layer, _, part = name.partition(".")
    return layer.startswith("lora_unet_") and part in PARTS
