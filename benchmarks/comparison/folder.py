"""What commands are given: a saved model, policies, and edits of it.

    python -m comparison.folder FOLDER MODEL

It is a script of its own, so that the process that measures others stays small: what they need
at most is counted from what it needs itself.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import AutoencoderKL, StableDiffusionPipeline
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from comparison.made_up import CLIP_L, phrases
from expunge import testing

VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "sample_size": 512,
}
VOCABULARY = 49_408
NAMES = {"sd14": (20, 200), "pico": (2, 3)}
"""How many names the longer policy erases and keeps."""


def write(folder: Path, name: str) -> None:
    """Write the model and two policies, ``one.yaml`` and ``many.yaml``, into a new folder."""
    folder.mkdir(parents=True)
    pipe = sd14(folder) if name == "sd14" else testing.pipeline(folder)
    pipe.save_pretrained(folder / "model")
    erased, kept = NAMES[name]
    words = phrases(erased + kept)
    many = {"erase": [{"target": one, "kind": "style"} for one in words[:erased]]}
    policies: dict[str, dict[str, Any]] = {
        "one": {"erase": [{"target": "ghost"}]},
        "other": {"erase": [{"target": "santa claus"}]},
        "many": {**many, "keep": words[erased:]},
    }
    for stem, policy in policies.items():
        (folder / f"{stem}.yaml").write_text(yaml.safe_dump(policy), encoding="utf-8")


def sd14(folder: Path) -> StableDiffusionPipeline:
    """Stable Diffusion 1.4 in size, float32 with random weights; its tokenizer alone is small."""
    pipe = testing.sd14(folder, filled=False)
    small = {**pipe.text_encoder.config.to_dict(), "vocab_size": VOCABULARY}
    with torch.device("meta"):
        pipe.vae = AutoencoderKL(**VAE)
        pipe.text_encoder = CLIPTextModel(CLIPTextConfig(**small | CLIP_L))
    draws = torch.Generator().manual_seed(0)
    networks: tuple[nn.Module, ...] = (pipe.unet, pipe.vae, pipe.text_encoder)
    for network in networks:
        network.to_empty(device="cpu")
        for value in network.parameters():
            value.data.normal_(std=0.02, generator=draws)
    return pipe


if __name__ == "__main__":
    write(Path(sys.argv[1]), sys.argv[2])
