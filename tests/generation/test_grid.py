import numpy as np
import pytest
import torch
from PIL import Image

from expunge.errors import ExpungeError
from expunge.generation.grid import grid


def test_pictures_stand_where_their_labels_say() -> None:
    red = torch.tensor([255, 0, 0], dtype=torch.uint8).expand(64, 64, 3)
    blue = np.full((32, 32, 3), (0, 0, 255), dtype=np.uint8)
    green = Image.new("RGB", (64, 32), "#00ff00")
    sheet = grid([[red, blue], [green, red]], cell=64, gap=4)
    assert sheet.size == (2 * 68 + 4, 2 * 68 + 4)
    centres = [[sheet.getpixel((36 + 68 * x, 36 + 68 * y)) for x in (0, 1)] for y in (0, 1)]
    assert centres == [[(255, 0, 0), (0, 0, 255)], [(0, 255, 0), (255, 0, 0)]]
    assert sheet.getpixel((36, 68 + 8)) == (255, 255, 255), "a wide picture keeps its shape"


def test_labels_take_their_own_room() -> None:
    picture = np.zeros((64, 64, 3), dtype=np.uint8)
    plain = grid([[picture]], cell=64)
    labelled = grid(
        [[picture]], row_labels=["base model"], column_labels=["santa claus, noto style"], cell=64
    )
    dark = (np.asarray(labelled) == 0).all(-1).sum()
    assert dark >= 64 * 64, "no caption covers the picture"
    assert labelled.width > plain.width
    assert labelled.height > plain.height


def test_what_does_not_fit_is_an_error() -> None:
    picture = np.zeros((8, 8, 3), dtype=np.uint8)
    with pytest.raises(ExpungeError, match="equally many"):
        grid([[picture], [picture, picture]])
    with pytest.raises(ExpungeError, match="equally many"):
        grid([])
    with pytest.raises(ExpungeError, match="a label for every row"):
        grid([[picture]], row_labels=["a", "b"])
