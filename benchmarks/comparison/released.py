"""The way of a released program: UCE (2025) of a policy, as one process.

    python -m comparison.released MODEL POLICY OUTPUT

It loads the whole pipeline, encodes each prompt by itself at full length, and solves layer after
layer with an inverse each.
"""

import sys

import torch
import yaml
from diffusers import DiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor

from comparison.originals import uce_2025


@torch.no_grad()
def main(folder: str, policy: str, output: str) -> None:
    pipe = DiffusionPipeline.from_pretrained(folder, safety_checker=None)
    with open(policy, encoding="utf-8") as file:
        asked = yaml.safe_load(file)

    def row(prompt: str) -> Tensor:
        tokens = pipe.tokenizer(prompt, padding="max_length", truncation=True, return_tensors="pt")
        last = int(tokens.attention_mask.sum()) - 2
        return pipe.text_encoder(tokens.input_ids).last_hidden_state[0, last]

    weights = {
        name: value
        for name, value in pipe.unet.named_parameters()
        if ".attn2.to_k." in name or ".attn2.to_v." in name
    }
    anchors = {"style": "art", "object": ""}
    moved = [
        (row(one["target"]), row(anchors[one.get("kind", "object")])) for one in asked["erase"]
    ]
    kept = [row(words) for words in asked.get("keep", ())]
    edited = uce_2025(list(weights.values()), moved, kept, 0.5)
    save_file(dict(zip(weights, edited, strict=True)), output)


if __name__ == "__main__":
    main(*sys.argv[1:])
