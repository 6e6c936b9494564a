"""Pictures side by side in one labelled picture."""

from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.Image import Resampling
from torch import Tensor

from expunge.errors import ExpungeError

GridPicture = Image.Image | np.ndarray[Any, Any] | Tensor
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_INK, _PAPER = "#222222", "#ffffff"


def grid(
    rows: Sequence[Sequence[GridPicture]],
    *,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    cell: int = 128,
    font_size: int = 16,
    gap: int = 6,
) -> Image.Image:
    """Rows of pictures with a caption left of each row and above each column.

    Args:
        rows: equally many pictures each, PIL or uint8 ``[height, width, 3]``.
        row_labels: one per row, or none.
        column_labels: one per column, or none; wrapped to the column's width.
        cell: edge in pixels of the square that every picture is fitted into.
        font_size: of the captions, in pixels.
        gap: pixels between cells.

    Raises:
        ExpungeError: there is no picture, or rows and labels don't match.
    """
    columns = len(rows[0]) if rows else 0
    if not columns or any(len(row) != columns for row in rows):
        raise ExpungeError("a grid needs rows of equally many pictures, at least one")
    if len(row_labels) not in (0, len(rows)) or len(column_labels) not in (0, columns):
        raise ExpungeError("a grid needs a label for every row and column, or for none")
    font = ImageFont.load_default(font_size)
    names = [_wrapped(label, 2 * cell, font) for label in row_labels]
    titles = [_wrapped(label, cell, font) for label in column_labels]
    left = max((_extent(name, font)[0] + gap for name in names), default=0)
    top = max((_extent(title, font)[1] + gap for title in titles), default=0)
    step = cell + gap
    sheet = Image.new("RGB", (left + columns * step + gap, top + len(rows) * step + gap), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        place = (left + gap + column * step + cell / 2, top)
        draw.multiline_text(place, title, _INK, font, anchor="md", align="center")
    for line, row in enumerate(rows):
        y = top + gap + line * step
        if names:
            middle = (left, y + cell / 2)
            draw.multiline_text(middle, names[line], _INK, font, anchor="rm", align="right")
        for column, picture in enumerate(row):
            sheet.paste(_fitted(picture, cell), (left + gap + column * step, y))
    return sheet


def _wrapped(text: str, width: int, font: Font) -> str:
    """``text`` in lines that fit ``width`` pixels, broken between words where that is possible."""
    lines: list[str] = []
    for word in text.split():
        while font.getlength(word) > width and len(word) > 1:
            shorter = range(len(word) - 1, 1, -1)
            fits = next((n for n in shorter if font.getlength(word[:n]) <= width), 1)
            lines.append(word[:fits])
            word = word[fits:]
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)


def _extent(text: str, font: Font) -> tuple[int, int]:
    canvas = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    left, top, right, bottom = canvas.multiline_textbbox((0, 0), text, font)
    return ceil(right - min(left, 0)), ceil(bottom - min(top, 0))


def _fitted(picture: GridPicture, cell: int) -> Image.Image:
    """The picture in the middle of a square; small ones are enlarged with their pixels sharp."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(np.asarray(picture))
    scale = cell / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    whole = scale >= 1 and float(scale).is_integer()
    method = Resampling.NEAREST if whole else Resampling.LANCZOS
    square = Image.new("RGB", (cell, cell), _PAPER)
    square.paste(
        image.convert("RGB").resize(size, method), ((cell - size[0]) // 2, (cell - size[1]) // 2)
    )
    return square
