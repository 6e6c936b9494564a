"""Edits of any change, and predictions to compare models by."""

import torch
from torch import Tensor

from expunge import Edit, Model
from expunge.edits import Component, Payload
from expunge.edits.base import Base
from expunge.edits.component import Provenance


def edit_of(payload: Payload, model: Model) -> Edit:
    """An edit with this very change."""
    record = Provenance(
        method="made up",
        settings={},
        concepts=(),
        keep=(),
        seed=0,
        base=Base.of(model, payload.names, payload.reads_text),
        versions={},
    )
    return Edit((Component(payload, record),))


@torch.no_grad()
def predicted(model: Model) -> Tensor:
    """The noise predictions of two prompts at two times, ``[2, 4, 8, 8]``."""
    latents = random(2, 4, 8, 8, scale=1.0)
    embeddings = model.condition(["a picture of santa claus", "dog"])
    return model.predict(latents, torch.tensor([500, 20]), embeddings)


def random(*shape: int, scale: float = 0.05, seed: int = 0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def matrices(model: Model) -> dict[str, Tensor]:
    """All matrices and convolutions of the UNet."""
    return {n: w.detach() for n, w in model.denoiser.named_parameters() if w.ndim > 1}
