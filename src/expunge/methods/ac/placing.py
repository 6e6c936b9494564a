"""How a picture is shown to the UNet: as it is, in part, or small on a grey ground."""

from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from expunge.models import Model
from expunge.pictures import picture_bytes
from expunge.seeding import integer


class ShownExample(NamedTuple):
    """A picture as it is shown, with the student's prompt."""

    colours: Tensor
    """``[height, width, 3]`` in 0..255."""
    mask: Tensor
    """``[latent height, latent width]``, 1 where there is a picture."""
    prompt: str


def plain(model: Model, picture: Image.Image, prompt: str) -> ShownExample:
    """A picture shown as it is."""
    return ShownExample(
        picture_bytes([picture])[0].float(), torch.ones(model.latent_shape[1:]), prompt
    )


def placed(
    picture: Image.Image, scale: int, cell: int, draws: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A picture at another scale: part of it if the scale is larger, else all of it on grey.

    On grey, the mask leaves out one cell at each border, even if the picture fills everything.

    Args:
        picture: a picture of the model's size.
        scale: its new height in pixels.
        cell: the side of a latent in pixels.
        draws: decides the position of the part or of the picture.

    Returns:
        Colours ``[height, width, 3]`` in 0..255, and the mask ``[height/cell, width/cell]``.
    """
    width, height = picture.size
    size = (scale, scale * width // height)
    colours = picture_bytes([picture.resize(size[::-1], Image.Resampling.BILINEAR)])[0].float()
    corner = [integer(draws, 0, abs(a - b) + 1) for a, b in zip(size, (height, width), strict=True)]
    top, left = corner
    if scale > height:
        part = colours[top : top + height, left : left + width]
        return part, torch.ones(height // cell, width // cell)
    ground = torch.full((height, width, 3), 127.5)
    ground[top : top + size[0], left : left + size[1]] = colours
    mask = torch.zeros(height // cell, width // cell)
    for border in (1, 0):  # without its border, a mask of few cells would be empty
        if not mask.any():
            rows, columns = (
                slice(start // cell + border, (start + length) // cell - border)
                for start, length in zip(corner, size, strict=True)
            )
            mask[rows, columns] = 1
    return ground, mask
