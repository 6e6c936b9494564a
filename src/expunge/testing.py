"""Stable Diffusion's architecture with random weights, built offline and in memory."""

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

_SENTENCE = "a picture of santa claus ghost dog cat noto style art man photo an image"
WORDS = _SENTENCE.split()

SD14 = {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64}
"""UNet settings of Stable Diffusion 1.4; all others are diffusers' defaults."""


def tokenizer(folder: Path, length: int) -> CLIPTokenizer:
    """A CLIP tokenizer that knows ``WORDS`` as one token each and spells all others."""
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


def unet() -> UNet2DConditionModel:
    torch.manual_seed(1)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )


def pipeline(
    folder: Path, net: UNet2DConditionModel | None = None, *, width: int = 32, length: int = 16
) -> StableDiffusionPipeline:
    """A whole pipeline; by default 16 rows of width 32 a prompt, and 16-pixel pictures."""
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
        unet() if net is None else net,
        scheduler,
        None,
        None,
        requires_safety_checker=False,
    )
