"""The losses of Forget-Me-Not: attention on the concept's columns, or the distance of logits."""

import torch
from torch import Tensor

from expunge.method.batch import Batch
from expunge.method.student import Student
from expunge.models.attention import Look


def attention_norms(student: Student, batch: Batch) -> Tensor:
    """``| concat_l A_l[..., S] |_F`` of every sample, ``[batch]``; has gradients.

    ``batch`` has ``latents`` (noised), ``timestep``, ``condition`` and ``columns``, the ``S`` of
    each sample, ``[batch, tokens]`` bool.
    """
    used = batch["columns"].any(0).nonzero()[:, 0]
    marks = batch["columns"][:, None, None, used]

    def squares(look: Look) -> Tensor:
        seen: Tensor = look.attention[..., used].float() * marks
        return seen.square().sum((1, 2, 3))

    with student.model.attention_read(squares) as layers:
        student.predict(batch["latents"], batch["timestep"], batch["condition"])
    return torch.stack(list(layers.values())).sum(0).sqrt()


def logit_distances(student: Student, batch: Batch) -> Tensor:
    """``mean((s Q_l (K_l(c) - K_l(g))^T)^2)`` of every layer, ``[layers]``; has gradients.

    ``batch`` has ``latents`` (noised), ``timestep``, ``condition`` (c) and ``generic``, the rows of
    g, ``[1, tokens, width]``. The queries come from the pass with ``c``.
    """
    generic = batch["generic"].to(student.model.dtype).expand_as(batch["condition"].rows)

    def mean_square(look: Look) -> Tensor:
        keys = look.keys - look.keys_of(generic)
        logits: Tensor = look.scale * (look.queries @ keys.mT)
        return logits.float().square().mean()

    with student.model.attention_read(mean_square) as layers:
        student.predict(batch["latents"], batch["timestep"], batch["condition"])
    return torch.stack(list(layers.values()))
