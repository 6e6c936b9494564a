"""CLIP's architecture with random weights in a folder, and pictures for it."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from expunge.testing import tokenizer

SIZE = 16
WIDTH = 8


def save(folder: Path) -> CLIPModel:
    """Write a CLIP that loads like a real one."""
    tokens = tokenizer(folder, 16)
    layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = CLIPConfig(
        text_config={
            **layers,
            "num_attention_heads": 2,
            "vocab_size": len(tokens),
            "max_position_embeddings": 16,
            "bos_token_id": tokens.bos_token_id,
            "eos_token_id": tokens.eos_token_id,
            "pad_token_id": tokens.pad_token_id,
        },
        vision_config={**layers, "num_attention_heads": 2, "image_size": SIZE, "patch_size": 4},
        projection_dim=WIDTH,
    )
    torch.manual_seed(0)
    model = CLIPModel(config)
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)
    size = {"height": SIZE, "width": SIZE}
    CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=size).save_pretrained(folder)
    return model


def plain(colour: tuple[int, int, int], size: tuple[int, int] = (20, 16)) -> Image.Image:
    return Image.new("RGB", size, colour)


def noise(seed: int, side: int = 32) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)
