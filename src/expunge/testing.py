"""Random models and edits for testing and timing; nothing is downloaded.

For the tests of Expunge and of packages that extend it, and for benchmarks. ``pipeline`` builds a
Stable Diffusion small enough for a test: 16 rows of width 32 a prompt, pictures of 16 x 16 pixels,
a few milliseconds a UNet pass. It draws noise, but everything works on it as on a real model::

    model = expunge.load(testing.pipeline(tmp_path))
    edit = expunge.erase(model, "ghost", "my-method")

Its tokenizer knows ``WORDS`` as one token each. ``sd14`` builds one with a UNet of Stable Diffusion
1.4's size, to time things with. ``membrane`` is an edit that acts through a gate, not through
weights; ``dense`` is one of all weights. Weights depend on no state from outside: two pipelines
built in the same way are equal.
"""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from expunge.concepts import Concept
from expunge.edits.base import Base
from expunge.edits.component import Component, Provenance
from expunge.edits.edit import Edit
from expunge.edits.membranes import Membranes
from expunge.edits.payloads import Dense
from expunge.models import Model

_SENTENCE = "a picture of santa claus ghost dog cat noto style art man photo an image"
WORDS = _SENTENCE.split()

SD14 = {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64}
"""UNet settings of Stable Diffusion 1.4; all others are diffusers' defaults."""


# --- models


def tokenizer(folder: Path, length: int) -> CLIPTokenizer:
    """A CLIP tokenizer that knows ``WORDS`` as one token each and spells all others.

    Args:
        folder: for its two files.
        length: tokens of a prompt, its start and end among them.
    """
    letters = "abcdefghijklmnopqrstuvwxyz"
    merges = []
    for word in dict.fromkeys(WORDS):
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts = [parts[0] + parts[1], *parts[2:]]
    merges = list(dict.fromkeys(merges))
    pieces = [*letters, *(f"{x}</w>" for x in letters), *(a + b for a, b in merges)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines))
    files = (str(folder / "vocab.json"), str(folder / "merges.txt"))
    return CLIPTokenizer(*files, model_max_length=length)


def text_encoder(tokens: CLIPTokenizer, width: int) -> CLIPTextModel:
    """Two layers of CLIP's text encoder; rows of ``width``, a multiple of 4."""
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokens.model_max_length,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )
    return CLIPTextModel(config)


def unet(width: int = 32) -> UNet2DConditionModel:
    """A UNet for latents ``[batch, 4, 8, 8]`` and prompts ``[batch, rows, width]``."""
    torch.manual_seed(1)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        cross_attention_dim=width,
        attention_head_dim=4,
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )


def pipeline(
    folder: Path, net: UNet2DConditionModel | None = None, *, width: int = 32, length: int = 16
) -> StableDiffusionPipeline:
    """A whole pipeline; by default 16 rows of width 32 a prompt, and 16-pixel pictures.

    Args:
        folder: for the files of the tokenizer.
        net: another UNet than ``unet(width)``.
        width: of a row of a prompt's embedding, the UNet's ``cross_attention_dim``.
        length: rows of a prompt's embedding.
    """
    tokens = tokenizer(folder, length)
    torch.manual_seed(2)
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
        sample_size=16,
        scaling_factor=1.0,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    return StableDiffusionPipeline(
        vae,
        text_encoder(tokens, width),
        tokens,
        unet(width) if net is None else net,
        scheduler,
        None,
        None,
        requires_safety_checker=False,
    )


def sd14(folder: Path, *, latents: int = 64, filled: bool = True) -> StableDiffusionPipeline:
    """A UNet of Stable Diffusion 1.4's size, with 77 rows of width 768 a prompt.

    The text encoder and the VAE are the small ones of ``pipeline``.

    Args:
        folder: for the files of the tokenizer.
        latents: height and width of the latents.
        filled: whether the UNet's weights get random numbers, which takes some seconds; otherwise
            they are uninitialised memory.
    """
    settings = {**SD14, "sample_size": latents}
    if filled:
        torch.manual_seed(0)
        net = UNet2DConditionModel(**settings)
    else:
        with torch.device("meta"):
            net = UNet2DConditionModel(**settings)
        net.to_empty(device="cpu")
    return pipeline(folder, net, width=768, length=77)


# --- edits


def random(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers that depend on the shape and the seed alone."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def membrane(
    model: Model, concept: Concept, seed: int = 0, *, rank: int = 1, scale: float = 0.3, **acts: Any
) -> Edit:
    """An edit of one membrane for all layers of the transformers, with random factors.

    Args:
        model: what the edit is for.
        concept: its phrases open the membrane.
        seed: of the factors.
        rank: of the factors.
        scale: standard deviation of the factors.
        acts: how the membrane acts, as ``Membranes.made`` takes it.
    """
    names, up, down = model.select("transformers"), {}, {}
    for at, name in enumerate(names):
        out, into = model.base_weight(name).flatten(1).shape
        up[name] = scale * random(out, rank, seed=1000 * seed + 2 * at)
        down[name] = scale * random(rank, into, seed=1000 * seed + 2 * at + 1)
    phrases = concept.phrases
    payload = Membranes.made(up, down, model.encode(phrases), model.tokenized(phrases), **acts)
    return Edit((Component(payload, _record(model, names, concept, seed, reads_text=True)),))


def dense(model: Model, concept: Concept, seed: int = 0, *, scale: float = 0.01) -> Edit:
    """An edit that adds random numbers to every parameter of the denoiser.

    Args:
        model: what the edit is for.
        concept: what its record says that it erases.
        seed: of the numbers.
        scale: their standard deviation.
    """
    names = tuple(name for name, _ in model.denoiser.named_parameters())
    changes = {
        name: scale * random(*model.base_weight(name).shape, seed=1000 * seed + at)
        for at, name in enumerate(names)
    }
    return Edit((Component(Dense(changes), _record(model, names, concept, seed)),))


def _record(
    model: Model, names: tuple[str, ...], concept: Concept, seed: int, reads_text: bool = False
) -> Provenance:
    return Provenance(
        method="made up",
        settings={},
        concepts=(concept,),
        keep=(),
        seed=seed,
        base=Base.of(model, names, reads_text=reads_text),
        versions={},
    )
