"""What both sides get: a model of Stable Diffusion 1.4's size, prompts and their embeddings."""

import random
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from expunge import Model, load, testing
from expunge.algebra.ridge import gram
from expunge.prior import Metadata, Prior, text_fingerprint
from sizes import WIDTH


def sd14(folder: Path) -> Model:
    """Stable Diffusion 1.4's size, of which only the keys, values and text encoder have numbers."""
    pipe = testing.sd14(folder, filled=False)
    layers = {"intermediate_size": 4 * WIDTH, "num_hidden_layers": 12, "num_attention_heads": 12}
    pipe.text_encoder = CLIPTextModel(CLIPTextConfig(**pipe.text_encoder.config.to_dict() | layers))
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
    tokenizer, width = model.pipe.tokenizer, model.text_width
    own, mean = torch.randn(2, len(tokenizer), width, generator=draws)
    place = 0.2 * torch.randn(tokenizer.model_max_length, width, generator=draws)
    at = torch.arange(len(place))
    for prompt in dict.fromkeys(prompts):
        words = [tokenizer.bos_token_id, *model.tokens(prompt)]
        ids = torch.tensor(words + [tokenizer.eos_token_id] * (len(place) - len(words)))
        means = mean[ids].cumsum(0) / (at[:, None] + 1)
        last = len(words) - 1
        context = torch.where(at[:, None] > last, 3 * means[last], means)
        rows = own[ids] + context + place + 0.2 * torch.randn(place.shape, generator=draws)
        rows[0] = own[ids[0]]
        model.remember({prompt: 27 * rows / rows.norm(dim=1, keepdim=True)})


def prior(model: Model) -> Prior:
    """A second moment of as many directions as a row is wide."""
    rows = torch.randn(4 * model.text_width, model.text_width, generator=torch.Generator())
    metadata = Metadata(
        text_encoder=text_fingerprint(model), prompts=None, count=64, positions=64, versions={}
    )
    return Prior(gram(rows), metadata)
