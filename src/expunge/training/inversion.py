"""Textual inversion (Gal et al., ICLR 2023): token embeddings that stand for given pictures.

The embeddings ``v`` of a concept's own word pieces go on from where they are until the prompts
that hold them predict the noise in pictures of the concept::

    L = | e - eps(sqrt(a_t) x + sqrt(1 - a_t) e, t, c(v)) |^2

Neither the text encoder nor the UNet changes.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from expunge.errors import ExpungeError
from expunge.methods.mace.batches import columns, noised
from expunge.models import Model
from expunge.progress import track
from expunge.seeding import generator

WEIGHT_DECAY = 0.1
"""As in the pivotal tuning that Forget-Me-Not's first stage uses."""
PULL = 100
"""Times the learning rate: how much of the way back to its first length a row goes each step."""


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
) -> Tensor:
    """The prompts' embeddings with trained rows for the words, ``[prompts, tokens, width]``.

    Args:
        model: predicts noise, from base weights.
        prompts: each holds the words.
        words: what the trained rows stand for, and start from.
        mean: latents of the pictures, ``[pictures, channels, height, width]``.
        deviation: of the VAE, shaped like ``mean``.
        steps: one picture each.
        lr: learning rate of AdamW.
        seed: decides all draws.

    Raises:
        ExpungeError: the words' tokens aren't in a prompt, the model doesn't predict noise, or
            the loss isn't finite.
    """
    kind = model.pipe.scheduler.config.prediction_type
    if kind != "epsilon":
        raise ExpungeError(f"textual inversion: the model predicts {kind}, not noise")
    ids = torch.tensor(model.tokens(words))
    table: Tensor = model.pipe.text_encoder.get_input_embeddings().weight
    rows = table.detach()[ids.to(table.device)].float().clone().requires_grad_()
    lengths = rows.detach().norm(dim=1, keepdim=True)
    optimizer = torch.optim.AdamW([rows], lr=lr, weight_decay=WEIGHT_DECAY)
    count = len(model.pipe.scheduler.alphas_cumprod)
    for step in track(range(steps), f"inversion of {words}", total=steps):
        draws = generator(seed, "inversion", words, step)
        picture, prompt, timestep = (
            torch.randint(below, (1,), generator=draws)
            for below in (len(mean), len(prompts), count)
        )
        wobble, noise = torch.randn((2, 1, *mean.shape[1:]), generator=draws).to(mean.device)
        latents = noised(model, mean[picture] + wobble * deviation[picture], noise, timestep)
        embeddings = _encoded(model, [prompts[int(prompt)]], words, rows)
        predicted = model.predict_noise(
            latents.to(model.dtype), timestep.to(model.device), embeddings.to(model.dtype)
        )
        loss = F.mse_loss(predicted.float(), noise)
        if not math.isfinite(loss.item()):
            raise ExpungeError(f"the inversion's loss became {loss.item()}; use fewer steps")
        (rows.grad,) = torch.autograd.grad(loss, [rows])
        optimizer.step()
        with torch.no_grad():
            now = rows.norm(dim=1, keepdim=True)
            rows *= (now + min(1, PULL * lr) * (lengths - now)) / now
    with torch.no_grad():
        return _encoded(model, prompts, words, rows)


def _encoded(model: Model, prompts: Sequence[str], words: str, rows: Tensor) -> Tensor:
    """Embeddings ``[prompts, tokens, width]``; gradients reach ``rows``, ``[pieces, width]``."""
    tokenizer, encoder = model.pipe.tokenizer, model.pipe.text_encoder
    tokens = tokenizer(
        list(prompts),
        padding="max_length",
        truncation=True,
        max_length=tokenizer.model_max_length,
        return_tensors="pt",
    ).to(encoder.device)
    masked = getattr(encoder.config, "use_attention_mask", False)
    # The first column of the words' is where they first stand.
    places = torch.stack([columns(model, prompt, words).int().argmax() for prompt in prompts])
    with _replaced(encoder.get_input_embeddings(), places, rows):
        output = encoder(tokens.input_ids, attention_mask=tokens.attention_mask if masked else None)
    embeddings: Tensor = output.last_hidden_state.to(model.device)
    return embeddings


@contextmanager
def _replaced(table: Any, places: Tensor, rows: Tensor) -> Iterator[None]:
    """Inside, the table gives ``rows`` at ``places`` (one a prompt) and what follows them."""
    where = places[:, None] + torch.arange(len(rows))

    def put(module: Any, given: Any, output: Tensor) -> Tensor:
        changed = output.clone()
        changed[torch.arange(len(where))[:, None], where] = rows.to(output.dtype)
        return changed

    handle = table.register_forward_hook(put)
    try:
        yield
    finally:
        handle.remove()
