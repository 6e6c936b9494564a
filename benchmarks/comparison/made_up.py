"""What both sides get: a model of Stable Diffusion 1.4's size, prompts and their embeddings."""

import random
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from expunge import Model, load, testing
from expunge.algebra.ridge import gram
from expunge.models import Condition
from expunge.prior import Prior
from expunge.prior.sums import Metadata

CLIP_L = {"intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
"""Settings of Stable Diffusion 1.4's text encoder, beside its vocabulary."""


def sd14(folder: Path) -> Model:
    """Stable Diffusion 1.4's size, of which only the keys, values and text encoder have numbers."""
    pipe = testing.sd14(folder, filled=False)
    small = pipe.text_encoder.config.to_dict()
    pipe.text_encoder = CLIPTextModel(CLIPTextConfig(**small | CLIP_L))
    model = load(pipe)
    draws = torch.Generator().manual_seed(0)
    for weight in weights_of(model):
        weight.normal_(std=0.02, generator=draws)
    return model


def weights_of(model: Model) -> list[Tensor]:
    """All keys and values, ``[out, width]`` each."""
    return [model.base_weight(name) for name in model.select("cross_attention.kv")]


def phrases(count: int) -> list[str]:
    """So many different phrases of two to six words, as long in tokens as names of artists."""
    draws, words, found = random.Random(0), sorted(set(testing.WORDS)), dict[str, None]()
    while len(found) < count:
        found[" ".join(draws.choices(words, k=draws.randint(2, 6)))] = None
    return list(found)


def remember(model: Model, prompts: Iterable[str]) -> None:
    """Give a model made-up embeddings; a row depends on its token and the mean of what is before.

    Padding rows depend on the whole prompt and a little on their place.
    """
    draws = torch.Generator().manual_seed(1)
    [encoder], width = model.text_encoders, model.text_width
    own, mean = torch.randn(2, len(encoder.table), width, generator=draws)
    place = 0.2 * torch.randn(encoder.window, width, generator=draws)
    at = torch.arange(len(place))
    for prompt in dict.fromkeys(prompts):
        [ids] = encoder.read([prompt]).ids
        means = mean[ids].cumsum(0) / (at[:, None] + 1)
        last = model.last_token(prompt)
        context = torch.where(at[:, None] > last, 3 * means[last], means)
        rows = own[ids] + context + place + 0.2 * torch.randn(place.shape, generator=draws)
        rows[0] = own[ids[0]]
        rows = 27 * rows / rows.norm(dim=1, keepdim=True)
        model.remember({prompt: Condition(rows[None])})


def prior(model: Model) -> Prior:
    """A second moment of as many directions as a row is wide."""
    rows = torch.randn(4 * model.text_width, model.text_width, generator=torch.Generator())
    metadata = Metadata(
        text_encoder=model.text_fingerprint(), prompts=None, count=64, positions=64, versions={}
    )
    return Prior(gram(rows), metadata)
