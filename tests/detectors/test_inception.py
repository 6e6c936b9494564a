"""TorchScript feature networks: called as they ask for, refused where they give no features."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tiny_clip
from expunge.detectors import Extractor, detector
from expunge.errors import ExpungeError


class Means(nn.Module):
    """Mean colour; or, unless features are asked for, classes."""

    def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
        assert img.dtype == torch.uint8
        means = img.float().mean((2, 3))
        return means if return_features else means[:, :1]


class Maps(nn.Module):
    def forward(self, img: Tensor) -> Tensor:
        return img.float()


class Narrow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, img: Tensor) -> Tensor:
        return self.layer(img.float())


def save(module: nn.Module, file: Path) -> str:
    torch.jit.script(module).save(str(file))
    return f"inception:{file}"


def test_features_are_those_of_each_picture_whatever_its_size(tmp_path: Path) -> None:
    network = detector(save(Means(), tmp_path / "means.pt"))
    assert isinstance(network, Extractor)
    sizes = [(8, 8), (8, 8), (5, 9), (8, 8)]
    colours = [(10, 20, 30), (1, 2, 3), (0, 0, 255), (7, 7, 7)]
    pictures = [tiny_clip.plain(c, size) for c, size in zip(colours, sizes, strict=True)]
    assert network.features(pictures).tolist() == [list(map(float, c)) for c in colours]


def test_the_identity_is_the_hash_of_the_file(tmp_path: Path) -> None:
    from expunge.files import sha256

    network = detector(save(Means(), tmp_path / "means.pt"))
    assert network.identity.sha256 == sha256(tmp_path / "means.pt")


@pytest.mark.parametrize(
    ("module", "message"),
    [(Maps(), "gives no rows of features"), (Narrow(), "failed on a picture")],
)
def test_a_network_of_something_else_is_an_error(
    module: nn.Module, message: str, tmp_path: Path
) -> None:
    network = detector(save(module, tmp_path / "net.pt"))
    with pytest.raises(ExpungeError, match=message):
        network.features([tiny_clip.noise(0)])


def test_wrong_files_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ExpungeError, match="write inception: and a TorchScript file"):
        detector("inception:")
    with pytest.raises(ExpungeError, match="no such file"):
        detector(f"inception:{tmp_path / 'none.pt'}")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "state.pt")
    with pytest.raises(ExpungeError, match="no TorchScript file"):
        detector(f"inception:{tmp_path / 'state.pt'}")
