"""Textual inversion (Gal et al., ICLR 2023): token embeddings that stand for given pictures.

The embeddings ``v`` of a concept's own word pieces go on from where they are until the prompts
that hold them predict the noise in pictures of the concept::

    L = | e - eps(sqrt(a_t) x + sqrt(1 - a_t) e, t, c(v)) |^2

Neither the text encoder nor the UNet changes.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from expunge.errors import ExpungeError
from expunge.models import Condition, Model
from expunge.models.tokens import word_columns
from expunge.progress import track
from expunge.seeding import generator

WEIGHT_DECAY = 0.1
"""As in the pivotal tuning that Forget-Me-Not's first stage uses."""
PULL = 100
"""Each step, a row goes ``PULL * lr`` of the way back to its first length."""


def inverted(
    model: Model,
    prompts: Sequence[str],
    words: str,
    mean: Tensor,
    deviation: Tensor,
    *,
    steps: int,
    lr: float,
    seed: int,
) -> Condition:
    """The prompts' conditions with trained token embeddings for the words.

    Args:
        model: predicts noise, from base weights.
        prompts: each holds the words.
        words: what the trained embeddings stand for, and start from.
        mean: latents of the pictures, ``[pictures, channels, height, width]``.
        deviation: of the VAE, shaped like ``mean``.
        steps: how many; each takes one picture.
        lr: learning rate of AdamW.
        seed: decides all draws.

    Raises:
        ExpungeError: the words' tokens aren't in a prompt, the model doesn't predict noise, or
            the loss isn't finite.
    """
    if model.process.prediction != "noise":
        raise ExpungeError(
            f"textual inversion: the model predicts {model.process.prediction}, not noise"
        )
    ids = torch.tensor(model.tokens(words))
    table = model.text_encoders[0].table
    rows = table.detach()[ids.to(table.device)].float().clone().requires_grad_()
    lengths = rows.detach().norm(dim=1, keepdim=True)
    optimizer = torch.optim.AdamW([rows], lr=lr, weight_decay=WEIGHT_DECAY)
    for step in track(range(steps), f"inversion of {words}", total=steps):
        draws = generator(seed, "inversion", words, step)
        loss = _loss(model, prompts, words, rows, mean, deviation, draws)
        if not math.isfinite(loss.item()):
            raise ExpungeError(f"the inversion's loss became {loss.item()}; use fewer steps")
        (rows.grad,) = torch.autograd.grad(loss, [rows])
        optimizer.step()
        with torch.no_grad():
            now = rows.norm(dim=1, keepdim=True)
            rows *= (now + min(1, PULL * lr) * (lengths - now)) / now
    with torch.no_grad():
        return _embedded(model, prompts, words, rows)


def _loss(
    model: Model,
    prompts: Sequence[str],
    words: str,
    rows: Tensor,
    mean: Tensor,
    deviation: Tensor,
    draws: torch.Generator,
) -> Tensor:
    """The loss of one picture with one prompt at one timestep, all drawn at random."""
    process = model.process
    picture, prompt, timestep = (
        torch.randint(below, (1,), generator=draws)
        for below in (len(mean), len(prompts), process.times)
    )
    wobble, noise = torch.randn((2, 1, *mean.shape[1:]), generator=draws).to(mean.device)
    latents = process.mix(mean[picture] + wobble * deviation[picture], noise, timestep)
    condition = _embedded(model, [prompts[int(prompt)]], words, rows)
    predicted = model.predict(
        latents.to(model.dtype), timestep.to(model.device), condition.to(dtype=model.dtype)
    )
    return F.mse_loss(predicted.float(), noise)


def _embedded(model: Model, prompts: Sequence[str], words: str, rows: Tensor) -> Condition:
    """Conditions of the prompts; gradients reach ``rows``, ``[pieces, width]``."""
    # The first column of the words' is where they first stand.
    first = torch.stack([word_columns(model, prompt, words).int().argmax() for prompt in prompts])
    [text] = model.read(prompts)
    return model.embed(text.replaced(rows, first[:, None] + torch.arange(len(rows))))
