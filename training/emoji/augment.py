"""Changes to real drawings that make a judge look at what is drawn, and pictures of nothing."""

from __future__ import annotations

import io
import math

import numpy as np
import torch
from common import SIZE, Drawings, compose
from PIL import Image
from torch import Tensor
from torch.nn import functional as F


def blur(images: Tensor, sigma: float) -> Tensor:
    radius = max(1, math.ceil(2 * sigma))
    x = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernel = torch.exp(-(x**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    padded = F.pad(images, [radius] * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel, groups=3), kernel.transpose(2, 3), groups=3)


def place(drawings: Drawings, rows: Tensor) -> Tensor:
    """Drawings [n] (object * styles + style) on random backgrounds, freely placed: 0..1."""
    count = len(rows)
    colours = drawings.colours()
    named = colours[torch.randint(len(colours), (count,))]
    colour = torch.where(torch.rand(count, 1) < 0.3, 0.35 + 0.65 * torch.rand(count, 3), named)
    scale = 0.78 + 0.24 * torch.rand(count)
    shift = 8 * torch.rand(count, 2) - 4
    angle = (torch.rand(count) - 0.5) * 0.2
    return compose(drawings.rgba.flatten(0, 1)[rows], colour, scale, shift, angle)


def degrade(images: Tensor) -> Tensor:
    """What training sees: a little colour change, blur and noise. 0..1 to 0..1."""
    count = len(images)
    gain = 1 + 0.2 * (torch.rand(count, 3, 1, 1) - 0.5)
    images = (images - 0.5) * gain + 0.5 + 0.08 * (torch.rand(count, 3, 1, 1) - 0.5)
    blurred = blur(images, 0.4 + 0.7 * float(torch.rand(())))
    images = torch.where(torch.rand(count, 1, 1, 1) < 0.35, blurred, images)
    noise = 0.08 * torch.rand(count, 1, 1, 1) * (torch.rand(count, 1, 1, 1) < 0.4)
    return (images + noise * torch.randn_like(images)).clamp(0, 1)


def damage(images: Tensor) -> Tensor:
    """What training sees later: light and contrast, stronger blur, patches. 0..1 to 0..1."""
    count = len(images)
    contrast = 1 + 0.5 * (torch.rand(count, 1, 1, 1) - 0.5)
    light = 0.3 * (torch.rand(count, 1, 1, 1) - 0.5)
    images = degrade(((images - 0.5) * contrast + 0.5 + light).clamp(0, 1))
    blurred = blur(images, 0.8 + 0.8 * float(torch.rand(())))
    images = torch.where(torch.rand(count, 1, 1, 1) < 0.15, blurred, images)
    for image in images:
        for _ in range(max(0, int(torch.randint(-2, 4, ())))):
            height, width = torch.randint(3, 17, (2,)).tolist()
            y, x = int(torch.randint(SIZE - height, ())), int(torch.randint(SIZE - width, ()))
            image[:, y : y + height, x : x + width] = torch.rand(3, 1, 1)
    return images


UNSEEN = ("jpeg", "coarse", "gamma", "shear", "lines")


def unseen(images: Tensor) -> Tensor:
    """What only the test sees, each picture one of ``UNSEEN`` in turn. 0..1 to 0..1."""
    changed = []
    for index, image in enumerate(images):
        kind = UNSEEN[index % len(UNSEEN)]
        if kind == "jpeg":
            array = (image * 255).byte().permute(1, 2, 0).numpy()
            buffer = io.BytesIO()
            Image.fromarray(array).save(buffer, "JPEG", quality=40)
            image = torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1) / 255
        elif kind == "coarse":
            coarse = F.interpolate(image[None], scale_factor=0.75, mode="area")
            image = F.interpolate(coarse, SIZE, mode="nearest")[0]
        elif kind == "gamma":
            image = image ** (0.7 + 0.7 * float(torch.rand(())))
        elif kind == "shear":
            slope = 0.3 * float(torch.rand(())) - 0.15
            theta = torch.tensor([[[1.0, slope, 0.0], [0.0, 1.0, 0.0]]])
            grid = F.affine_grid(theta, [1, 3, SIZE, SIZE], False)
            image = F.grid_sample(image[None], grid, "bilinear", "border", False)[0]
        else:
            image = image.clone()
            for _ in range(3):
                at, lies = int(torch.randint(SIZE - 2, ())), int(torch.randint(2, ()))
                line = image[:, at : at + 2] if lies else image[:, :, at : at + 2]
                line[:] = torch.rand(3, 1, 1)
        changed.append(image)
    return torch.stack(changed)


def nothing(images: Tensor, colours: Tensor) -> Tensor:
    """Pictures of nothing made from real ones: blank, noise, smears, shuffled tiles. 0..1."""
    count = len(images)
    result = colours[torch.randint(len(colours), (count,))][:, :, None, None].expand_as(images)
    result = result.clone()
    for index in range(count):
        kind = int(torch.randint(6, ()))
        if kind == 0:
            result[index] += 0.03 * torch.randn(3, 1, 1)
        elif kind == 1:
            side = int(torch.randint(1, 5, ()))
            noise = torch.rand(1, 3, SIZE // 2**side, SIZE // 2**side)
            result[index] = F.interpolate(noise, SIZE, mode="bilinear")[0]
        elif kind == 2:
            result[index] = blur(images[index, None], 6 + 6 * float(torch.rand(())))[0]
        elif kind in (3, 4):  # shuffled tiles of two drawings
            tile = 8 if kind == 3 else 16
            other = images[torch.randint(count, ())]
            both = torch.stack([images[index], other])
            tiles = both.unfold(2, tile, tile).unfold(3, tile, tile)
            tiles = tiles.permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, tile, tile)
            tiles = tiles[torch.randperm(len(tiles))][: (SIZE // tile) ** 2]
            side = SIZE // tile
            grid = tiles.reshape(side, side, 3, tile, tile).permute(2, 0, 3, 1, 4)
            result[index] = grid.reshape(3, SIZE, SIZE)
        else:  # blobs of one colour each
            low = F.interpolate(torch.randn(1, 1, 5, 5), SIZE, mode="bicubic")[0]
            mask = (low > 0.4 * torch.rand(())).float()
            result[index] = result[index] * (1 - mask) + torch.rand(3, 1, 1) * mask
    return result.clamp(0, 1)
