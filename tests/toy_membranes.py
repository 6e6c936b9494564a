"""Membranes that no one has trained: random factors for all layers of a model's transformers."""

import torch
from torch import Tensor

from expunge import Concept, Edit, Model
from expunge.edits.component import Base, Component, Provenance
from expunge.edits.membranes import Membranes


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def membrane(
    model: Model, concept: Concept, seed: int = 0, *, rank: int = 1, scale: float = 0.3, **acts
) -> Edit:
    """An edit of one membrane."""
    names, up, down = model.select("transformers"), {}, {}
    for at, name in enumerate(names):
        out, into = model.base_weight(name).flatten(1).shape
        up[name] = scale * random(out, rank, seed=1000 * seed + 2 * at)
        down[name] = scale * random(rank, into, seed=1000 * seed + 2 * at + 1)
    phrases = concept.phrases
    payload = Membranes.made(up, down, model.encode(phrases), model.tokenized(phrases), **acts)
    record = Provenance(
        method="made up",
        settings={},
        concepts=(concept,),
        keep=(),
        seed=seed,
        base=Base(name=model.name, fingerprint=model.fingerprint(names)),
        versions={},
    )
    return Edit((Component(payload, record),))
