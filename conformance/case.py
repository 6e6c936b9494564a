"""One run of an original program, and how far our numbers are from its numbers."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from expunge.edits.applied import edited_weights
from expunge.edits.edit import Edit
from expunge.errors import ExpungeError
from expunge.method.student import Student
from expunge.models import Condition, Model, load

Tensors = Mapping[str, Tensor]


class Difference(NamedTuple):
    """How far one of our results is from the original's, and how far it may be."""

    value: float
    tolerance: float

    @property
    def share(self) -> float:
        return self.value / self.tolerance if self.tolerance else float(self.value > 0)

    @property
    def ok(self) -> bool:
        return self.value <= self.tolerance


class Case:
    """One folder of the reference data; files are read when asked for."""

    def __init__(self, folder: Path, models: Path) -> None:
        self.folder = folder
        self.models = models
        self.data: dict[str, Any] = json.loads((folder / "case.json").read_text(encoding="utf-8"))

    def __getitem__(self, key: str) -> Any:
        return self.data[key]

    def get(self, key: str) -> Any:
        return self.data.get(key)

    def file(self, name: str) -> Tensors:
        """The tensors of a file of the case; none when there is no such file."""
        path = self.folder / f"{name}.safetensors"
        return load_file(path) if path.exists() else {}

    def model(self) -> Model:
        """The model that the case names, with the embeddings that the original used."""
        model = load(self.models / self["model"], device="cpu")
        if patch := self.get("text_encoder_patch"):
            _patch(model.text_encoders[0].network, load_file(self._beside(patch)))
        stored = self.folder / str(self.get("text_embeddings")).partition(",")[0]
        if stored.is_file():
            model.remember(conditions(load_file(stored)))
        return model

    def _beside(self, name: str) -> Path:
        """A file of the whole set: beside the cases, or else beside the models."""
        path = self.folder.parent / name
        return path if path.exists() else self.models / name


@torch.no_grad()
def _patch(module: nn.Module, values: Tensors) -> None:
    """Replace the parameters whose names end in those of ``values``."""
    parameters = dict(module.named_parameters())
    for ending, value in values.items():
        names = [name for name in parameters if f".{name}".endswith(f".{ending}")]
        if len(names) != 1:
            raise ExpungeError(f"{ending}: {len(names)} parameters of the text encoder end so")
        parameters[names[0]].copy_(value)


def conditions(tensors: Tensors) -> dict[str, Condition]:
    """What the denoiser is told of each prompt, from ``emb:prompt`` and ``pooled:prompt``."""
    found = {}
    for key in (key for key in tensors if key.startswith("emb:")):
        prompt = key.removeprefix("emb:")
        whole = tensors.get(f"pooled:{prompt}")
        found[prompt] = Condition(tensors[key][None], None if whole is None else whole[None])
    return found


def begin_with(student: Student, weights: Tensors) -> None:
    """Give a student the weights that an original began with.

    Raises:
        ExpungeError: the original trains others.
    """
    if set(weights) != set(student.weights):
        raise ExpungeError(f"{len(weights)} parameters train, here {len(student.weights)}")
    with torch.no_grad():
        for name, weight in weights.items():
            student.weights[name].copy_(weight)


def under(tensors: Tensors, group: str) -> dict[str, Tensor]:
    """The tensors of a group, by the name that follows it."""
    start = f"{group}/"
    return {key.removeprefix(start): t for key, t in tensors.items() if key.startswith(start)}


def sampled(tensor: Tensor) -> Tensor:
    """What a case stores of a tensor: all of a small one, else a place in every so many.

    The stride is the smallest prime that leaves no more than 1024 places, and at least 5.
    """
    if tensor.numel() <= 1024:
        return tensor
    stride = max(5, -(-tensor.numel() // 1024))
    while any(stride % divisor == 0 for divisor in range(2, int(stride**0.5) + 1)):
        stride += 1
    return tensor.reshape(-1)[::stride]


def pooled(ours: Tensors, theirs: Tensors) -> float:
    """Relative Frobenius distance over all tensors of ``theirs``."""
    distance = sum((ours[name].double() - theirs[name].double()).square().sum() for name in theirs)
    total = sum(tensor.double().square().sum() for tensor in theirs.values())
    return float((torch.as_tensor(distance) / torch.as_tensor(total)).sqrt())


def fingerprint(tensor: Tensor) -> Tensor:
    """Norm, projection on the ones direction, projection on the direction cos 0, cos 1, ..."""
    flat = tensor.double().flatten()
    wave = torch.cos(torch.arange(len(flat), dtype=torch.float64))
    return torch.stack([flat.norm(), flat.sum() / len(flat) ** 0.5, flat @ wave / wave.norm()])


def compared(ours: Tensors, case: Case, theirs: Tensors, tolerance: float) -> Iterator[Difference]:
    """Distance of whole tensors, and of the fingerprints of those too large to store."""
    yield Difference(pooled(ours, theirs), tolerance)
    marks = case.file("fingerprints")
    if marks:
        largest = max(float(mark[0]) for mark in marks.values())
        worst = max(float((fingerprint(ours[n]) - m).abs().max()) for n, m in marks.items())
        yield Difference(worst / largest, tolerance)


def weight_changes(case: Case, model: Model, edit: Edit) -> Iterator[Difference]:
    """Distance of an edit's changes from the original's, in single and in double precision."""
    edited = edited_weights(model, edit.components, edit.names)
    base = {name: model.base_weight(name).double() for name in edited}
    ours = {name: weight - base[name] for name, weight in edited.items() if weight is not None}
    for file, tolerance in case["tolerance"].items():
        if file == "expected" and case.get("fp32_reliable") is False:
            continue
        theirs = case.file(file)
        if "M" in theirs:
            theirs = {name: weight @ theirs["M"] for name, weight in base.items()}
        if set(theirs) != set(ours):
            raise ExpungeError(f"{file}: {len(theirs)} tensors change, here {len(ours)}")
        change = {name: weight.double() - base[name] for name, weight in theirs.items()}
        yield Difference(pooled(ours, change), tolerance["rel_fro_of_change"])


def relative(ours: Sequence[float], theirs: Sequence[float], tolerance: float) -> Difference:
    """The largest relative difference of two lists; an absolute one where theirs is 0."""
    pairs = zip(ours, theirs, strict=True)
    return Difference(max(abs(a - b) / (abs(b) or 1) for a, b in pairs), tolerance)


def loss_difference(ours: Iterable[float], theirs: Iterable[float], tolerance: float) -> Difference:
    """The largest relative difference of two lists of losses."""
    return Difference(max(abs(a / b - 1) for a, b in zip(ours, theirs, strict=True)), tolerance)
