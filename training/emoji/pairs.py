"""Teach a finished model to draw two things side by side, 64x128, and one as before.

It begins with the UNet of ``--pipe``, whose text encoder and autoencoder stay as they are. A pair
is two latents of single pictures, in one style and on one background, next to each other. Runs in
one process or in several, as ``unet.py`` does; ``assemble.py --base`` puts the result together.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from captions import Captions
from common import PACKAGE, Drawings, parser, settings
from diffusers import UNet2DConditionModel
from left_out import LeftOut
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer
from unet import Denoising, Part, draw_rows, load_bank, single_pictures, train, with_dropped


def partners(labels: Tensor, rows: Tensor) -> Tensor:
    """For each row [n] of the bank one with another object, in its style, on its background."""
    found = []
    for thing, style, ground in labels[rows].tolist():
        fits = (labels[:, 0] != thing) & (labels[:, 1] == style) & (labels[:, 2] == ground)
        others = torch.nonzero(fits).flatten()
        found.append(others[torch.randint(len(others), ())])
    return torch.stack(found)


def pairs_of_pictures(
    bank: dict[str, Tensor], rows: Tensor, captions: Captions, generator: torch.Generator
) -> Part:
    """Pairs [n] that have these rows of the bank on the left, with captions."""
    others = partners(bank["labels"], rows)
    latents = torch.cat([bank["latents"][rows], bank["latents"][others]], -1)
    labels = zip(bank["labels"][rows].tolist(), bank["labels"][others, 0].tolist(), strict=True)
    texts = [
        captions.draw_pair(first, second, style, ground, generator)
        for (first, style, ground), second in labels
    ]
    return latents, with_dropped(texts, generator)


def mixed(
    bank: dict[str, Tensor], captions: Captions, args: argparse.Namespace
) -> Callable[[int, torch.Generator], list[Part]]:
    """What draws single pictures and pairs, in the share that is asked for."""

    def draw(count: int, generator: torch.Generator) -> list[Part]:
        rows = draw_rows(bank["labels"], count, args.white)
        single, paired = rows.tensor_split([count - round(count * args.paired)])
        return [
            make(bank, part, captions, generator)
            for make, part in ((single_pictures, single), (pairs_of_pictures, paired))
            if len(part)
        ]

    return draw


def main() -> None:
    options = parser(__doc__)
    options.add_argument(
        "--pipe", type=Path, default=PACKAGE / "pipe", help="the model to begin with"
    )
    options.add_argument("--steps", type=int, default=1200)
    options.add_argument("--batch", type=int, default=64, help="of all processes together")
    options.add_argument("--lr", type=float, default=6e-4)
    options.add_argument("--white", type=float, default=0.65, help="share of white backgrounds")
    options.add_argument("--paired", type=float, default=0.5, help="share of pairs")
    args = options.parse_args()
    run = settings(args)
    if (known := LeftOut.read(args.pipe)) != run.without:
        options.error(f"{args.pipe} leaves out {known}, and {run.work} {run.without}")
    drawings = Drawings.load(run.work, run.without)
    bank = load_bank(run, drawings, "pairs", args.pipe / "vae")
    captions = Captions(drawings.catalog)
    task = Denoising(
        run,
        UNet2DConditionModel.from_pretrained(args.pipe / "unet", torch_dtype=torch.float32),
        CLIPTextModel.from_pretrained(args.pipe / "text_encoder", dtype=torch.float32),
        CLIPTokenizer.from_pretrained(args.pipe / "tokenizer"),
    )
    train("pairs", task, mixed(bank, captions, args), args)


if __name__ == "__main__":
    main()
