"""A prior beside the cache that the released programs make of the same captions."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from conformance.case import Case, Difference, Tensors, pooled
from expunge.models import Model
from expunge.prior import Prior
from expunge.prior.legacy import imported


def cache(case: Case) -> Iterator[Difference]:
    """Every matrix of the cache, made from our prior, and our prior made from the cache."""
    model, theirs = case.model(), case.file("expected")
    tolerance = case["tolerance"]["expected"]["rel_fro_per_tensor"]
    prior = Prior.of(model, case["captions"])
    yield Difference(float(prior.metadata.count != case["n_captions"]), 0.0)
    names = model.values_then_keys()
    yield Difference(float(list(names) != case["key_order"]), 0.0)
    yield Difference(float(len(theirs) != 2 * len(names)), 0.0)
    for i, name in enumerate(names):
        ours = {
            f"{i}_for_mat1": model.base_weight(name).double() @ prior.gram,
            f"{i}_for_mat2": prior.gram,
        }
        for key, matrix in ours.items():
            yield Difference(pooled({key: matrix}, {key: theirs[key]}), tolerance)
    with tempfile.TemporaryDirectory() as folder:
        found = imported(_torch_file(Path(folder), theirs), model)
    yield Difference(pooled({"C": found.gram}, {"C": prior.gram}), tolerance)
    yield Difference(pooled({"C": prior.gram}, {"C": case.file("mat")["C"]}), tolerance)


def given(case: Case, model: Model, name: str) -> Prior:
    """The prior that a case says it uses: the sum of another case, in double precision."""
    other = Case(case.folder.parent / name, case.models)
    prior = Prior.of(model, other["captions"])
    return Prior(other.file("mat")["C"], prior.metadata)


def _torch_file(folder: Path, tensors: Tensors) -> Path:
    """The cache in the format in which the programs pass it around."""
    torch.save(dict(tensors), folder / "cache.pt")
    return folder / "cache.pt"
