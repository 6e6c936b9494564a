"""Draw the sample sheet of the documentation: styles down, a choice of objects across, seed 0."""

from __future__ import annotations

from pathlib import Path

from common import parser, settings, write
from evaluate import draw, grid, load
from PIL import Image

from expunge.models.emoji import catalog

OBJECTS = (
    "dog face",
    "cat face",
    "penguin",
    "butterfly",
    "pizza",
    "strawberry",
    "rocket",
    "sunflower",
    "umbrella",
    "guitar",
    "santa claus",
    "robot",
    "ghost",
    "skull",
    "bomb",
)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--pipe", type=Path, required=True)
    options.add_argument("--png", type=Path, required=True)
    options.add_argument("--steps", type=int, default=20)
    options.add_argument("--guidance", type=float, default=4.0)
    args = options.parse_args()
    run = settings(args)
    pipe = load(args.pipe, run.device)
    images = []
    for style in catalog().styles:
        prompts = [f"{name}, {style.name} style" for name in OBJECTS]
        images += draw(pipe, prompts, [0] * len(OBJECTS), args)
    sheet = grid(images, len(OBJECTS)).quantize(256, dither=Image.Dither.NONE)
    write(args.png, lambda path: sheet.save(path, "PNG", optimize=True))


if __name__ == "__main__":
    main()
