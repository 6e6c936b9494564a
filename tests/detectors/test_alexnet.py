"""AlexNet's trunk from torchvision's state dict."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from expunge.detectors import detector
from expunge.detectors.alexnet import trunk
from expunge.errors import ExpungeError


def state() -> dict[str, Tensor]:
    """Random weights under torchvision's names, with a head that isn't needed."""
    torch.manual_seed(0)
    own = {f"features.{name}": value for name, value in trunk().state_dict().items()}
    return {**own, "classifier.1.bias": torch.zeros(4096)}


def test_both_formats_give_the_same_maps(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "alexnet.pth")
    save_file(state(), tmp_path / "alexnet.safetensors")
    pixels = torch.rand(2, 3, 64, 70, generator=torch.Generator().manual_seed(0))
    one, other = (
        detector(f"alexnet:{tmp_path / name}").layers(pixels)
        for name in ("alexnet.pth", "alexnet.safetensors")
    )
    assert [tuple(maps.shape[:2]) for maps in one] == [(2, c) for c in (64, 192, 384, 256, 256)]
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
        assert (a >= 0).all()


def test_other_weights_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "alexnet.pth"
    less = state()
    del less["features.8.bias"]
    wrong = {**state(), "features.0.bias": torch.zeros(1)}
    for content, message in (
        (less, "no features.8.bias in it"),
        (torch.zeros(2), "no state dict"),
        (wrong, "of another shape"),
    ):
        torch.save(content, file)
        with pytest.raises(ExpungeError, match=message):
            detector(f"alexnet:{file}")
    file.write_bytes(b"nothing")
    with pytest.raises(ExpungeError, match=r"alexnet\.pth: "):
        detector(f"alexnet:{file}")


def test_pictures_too_small_for_five_layers_are_refused(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "alexnet.safetensors")
    network = detector(f"alexnet:{tmp_path / 'alexnet.safetensors'}")
    network.layers(torch.zeros(1, 3, 31, 31))
    with pytest.raises(ExpungeError, match="31 pixels or more"):
        network.layers(torch.zeros(1, 3, 30, 64))
