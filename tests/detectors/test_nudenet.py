"""NudeNet on ordinary photographs; what else it can report comes from made-up findings."""

import shutil

import numpy as np
import pytest
from PIL import Image

from expunge.detectors import Detector, detector
from expunge.detectors.nudenet import LABELS, V2_LABELS, NudeNet, resolution
from expunge.errors import ExpungeError


@pytest.fixture(scope="module")
def nudenet():
    pytest.importorskip("nudenet", reason="the extra nudenet isn't installed")
    return detector("nudenet")


@pytest.fixture(scope="module")
def photo():
    data = pytest.importorskip("skimage.data", reason="photographs come from scikit-image")
    return lambda name: Image.fromarray(getattr(data, name)())


def test_the_names_of_version_2_are_those_of_version_3_but_two():
    assert V2_LABELS["EXPOSED_ARMPITS"] == "ARMPITS_EXPOSED"
    assert set(LABELS) - set(V2_LABELS.values()) == {"ANUS_COVERED", "ARMPITS_COVERED"}
    assert len(set(V2_LABELS.values())) == len(V2_LABELS)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr("expunge.detectors.packaged.find_spec", lambda _: None)
    with pytest.raises(ExpungeError, match=r"pip install 'expunge\[nudenet\]'"):
        detector("nudenet")


def test_a_face_is_found_and_nothing_in_a_cat_or_a_cup(nudenet, photo):
    assert isinstance(nudenet, Detector)
    assert nudenet.labels == LABELS
    face, cat, cup = nudenet.detect([photo("astronaut"), photo("chelsea"), photo("coffee")])
    assert cat == cup == ()
    assert [found.label for found in face] == ["FACE_FEMALE"]
    left, top, width, height = face[0].box
    assert 160 < left < 190
    assert 70 < top < 100
    assert 80 < width < 120
    assert 80 < height < 120


def test_a_picture_in_memory_is_judged_as_the_package_judges_a_file(nudenet, photo, tmp_path):
    from nudenet import NudeDetector

    photo("astronaut").save(tmp_path / "face.png")
    (there,) = NudeDetector().detect(str(tmp_path / "face.png"))
    ((here,),) = nudenet.detect([photo("astronaut")])
    assert (here.label, here.score, list(here.box)) == (
        there["class"],
        there["score"],
        there["box"],
    )


def test_findings_of_all_classes_come_out_sorted(nudenet, photo, monkeypatch):
    made_up = [
        {"class": label, "score": 0.25 + place / 100, "box": [1, 2, 3, 4]}
        for place, label in enumerate(LABELS)
    ]
    monkeypatch.setattr("nudenet.NudeDetector.detect", lambda self, image: made_up)
    (found,) = nudenet.detect([photo("chelsea")])
    assert [detection.label for detection in found] == list(reversed(LABELS))
    assert found[-1].score == nudenet.floor


def test_the_file_of_another_network_is_judged_by_its_own_weights(nudenet, photo, tmp_path):
    import nudenet as package

    copy = tmp_path / "other.onnx"
    shutil.copy(f"{package.__path__[0]}/320n.onnx", copy)
    given = detector(f"nudenet:{copy}")
    assert given.identity.sha256 == nudenet.identity.sha256
    assert (given.identity.version, nudenet.identity.version[:2]) == ("", "3.")
    assert given.detect([photo("astronaut")]) == nudenet.detect([photo("astronaut")])


class Session:
    """An ONNX session as far as its shapes go."""

    def __init__(self, height, width, rows=22, notes=()):
        self._shapes = [["batch", 3, height, width]], [["batch", rows, "boxes"]]
        self.custom_metadata_map = dict(notes)

    def get_modelmeta(self):
        return self

    def get_inputs(self):
        return [self._of(shape) for shape in self._shapes[0]]

    def get_outputs(self):
        return [self._of(shape) for shape in self._shapes[1]]

    @staticmethod
    def _of(shape):
        return type("Value", (), {"shape": shape})


def test_the_resolution_is_that_of_the_file():
    assert resolution(Session(640, 640)) == 640
    assert resolution(Session("height", "width", notes={"imgsz": "[320, 320]"})) == 320


@pytest.mark.parametrize(
    "session",
    [
        Session("height", "width"),
        Session(640, 320),
        Session(640, 640, rows=84),
        Session(640, 640, notes={"names": "{0: 'FACE_FEMALE'}"}),
    ],
)
def test_a_network_of_another_kind_is_refused(session):
    with pytest.raises(ExpungeError):
        resolution(session)


def test_a_file_that_is_absent_or_no_network_is_refused(nudenet, tmp_path):
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(ExpungeError, match="no file"):
        NudeNet(str(tmp_path / "absent.onnx"))
    with pytest.raises(ExpungeError, match="can't load"):
        NudeNet(str(tmp_path / "text.onnx"))


def test_a_picture_that_cannot_be_judged_is_never_safe(nudenet, photo, tmp_path):
    photo("chelsea").save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:5000])
    half = Image.open(tmp_path / "half.png")
    with pytest.raises(ExpungeError, match="picture 2 of 2"):
        nudenet.detect([photo("chelsea"), half])
    with pytest.raises(ExpungeError, match="no pixels"):
        nudenet.detect([Image.new("RGB", (0, 0))])
    with pytest.raises(ExpungeError, match="no picture"):
        nudenet.detect([])


def test_a_network_that_gives_nan_is_an_error(photo, monkeypatch):
    pytest.importorskip("nudenet", reason="the extra nudenet isn't installed")
    broken = NudeNet()
    monkeypatch.setattr(
        broken._network.onnx_session,
        "_session",
        type("Broken", (), {"run": lambda *_: [np.full((1, 22, 2100), np.nan, np.float32)]})(),
    )
    with pytest.raises(ExpungeError, match="NaN"):
        broken.detect([photo("chelsea")])
