"""Faces on photographs: one person stays that person, and a cat is nobody."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter

from expunge.detectors import Classifier, detector
from expunge.detectors.faces import SAME, likely
from expunge.errors import ExpungeError

pytest.importorskip("dlib", reason="the extra faces isn't installed")
skimage = pytest.importorskip("skimage", reason="photographs come from scikit-image")
if find_spec("face_recognition_models") is None:  # importing it fails without pkg_resources
    pytest.skip("the extra faces isn't installed", allow_module_level=True)


def photo(name):
    return Image.fromarray(getattr(skimage.data, name)())


def stranger(number=0):
    """One of the 25 by 25 faces that come with scikit-image, made larger."""
    faces = np.load(f"{skimage.data.__path__[0]}/lfw_subset.npy")
    small = Image.fromarray((faces[number] * 255).astype(np.uint8)).convert("RGB")
    framed = Image.new("RGB", (240, 240), (128, 128, 128))
    framed.paste(small.resize((120, 120), Image.Resampling.BICUBIC), (60, 60))
    return framed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("people")
    for name, picture in (("Eileen", photo("astronaut")), ("Somebody", stranger())):
        (root / name).mkdir()
        picture.save(root / name / "1.png")
    (root / "Eileen" / ".hidden").write_text("no picture")
    (root / "list.txt").write_text("no person")
    return root


@pytest.fixture(scope="module")
def people(folder):
    return detector(f"faces:{folder}")


CHANGES = {
    "blurred": lambda face: face.filter(ImageFilter.GaussianBlur(2)),
    "brighter": lambda face: ImageEnhance.Brightness(face).enhance(1.4),
    "darker": lambda face: ImageEnhance.Brightness(face).enhance(0.6),
    "turned": lambda face: face.rotate(12, Image.Resampling.BICUBIC),
    "grey": lambda face: face.convert("L"),
    "mirrored": lambda face: face.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "smaller": lambda face: face.resize((256, 256)),
}


def test_a_face_stays_the_same_persons(people):
    changed = [change(photo("astronaut")) for change in CHANGES.values()]
    for name, away in zip(CHANGES, people.distances(changed), strict=True):
        assert away[0] < SAME < away[1], name
    assert set(called(people, changed)) == {"Eileen"}


def called(people, pictures):
    return [people.labels[place] for place in people.probabilities(pictures).argmax(1)]


def test_who_is_not_in_the_folder_is_unknown_and_a_cat_is_nobody(people):
    assert isinstance(people, Classifier)
    assert people.labels == ("no face", "unknown", "Eileen", "Somebody")
    pictures = [stranger(), stranger(1), photo("chelsea"), photo("coffee")]
    assert called(people, pictures) == ["Somebody", "unknown", "no face", "no face"]


def test_the_embedding_is_that_of_the_face_and_not_of_a_fold_in_a_suit(people):
    face, nobody = people.embeddings([photo("astronaut"), photo("rocket")])
    assert nobody is None
    assert face.shape == (128,)
    assert torch.equal(face, people.centroids[0])
    (cut,) = people.embeddings([photo("astronaut").crop((100, 20, 340, 260))])
    assert (face - cut).norm() < 0.3


def test_probabilities_follow_the_distances():
    near = likely(torch.tensor([0.59, 0.9]), 2)
    far = likely(torch.tensor([0.61, 0.9]), 2)
    assert near.argmax() == 2
    assert far.argmax() == 1
    assert near[2] > far[2]
    assert near.sum() == pytest.approx(1)
    assert likely(None, 2).tolist() == [1, 0, 0, 0]
    assert near[0] == 0


def test_the_identity_is_of_the_networks_and_of_the_references(people, folder, tmp_path):
    (tmp_path / "Eileen").mkdir()
    photo("astronaut").save(tmp_path / "Eileen" / "1.png")
    assert detector(f"faces:{folder}").identity == people.identity
    assert detector(f"faces:{tmp_path}").identity.sha256 != people.identity.sha256


@pytest.mark.parametrize(
    ("person", "picture", "match"),
    [
        ("Tom", "chelsea", "no face found"),
        ("Tom", None, "no picture in it"),
        ("Tom", b"text", "no readable picture"),
        ("unknown", "astronaut", "rename"),
        (None, None, "no person"),
    ],
)
def test_a_folder_that_shows_nobody_is_refused(tmp_path, person, picture, match):
    if person:
        (tmp_path / person).mkdir()
        file = tmp_path / person / "1.png"
        if isinstance(picture, bytes):
            file.write_bytes(picture)
        elif picture:
            photo(picture).save(file)
    with pytest.raises(ExpungeError, match=match):
        detector(f"faces:{tmp_path}")


@pytest.mark.parametrize("name", ["faces", "faces:absent"])
def test_a_folder_must_be_given(name):
    with pytest.raises(ExpungeError, match="for each person"):
        detector(name)


def test_what_cannot_be_judged_is_an_error(people):
    with pytest.raises(ExpungeError, match="no picture"):
        people.probabilities([])
    with pytest.raises(ExpungeError, match="picture 2 of 2"):
        people.probabilities([photo("coffee"), Image.new("RGB", (0, 4))])


def test_a_missing_package_is_named_with_its_extra(folder, monkeypatch):
    monkeypatch.setattr("expunge.detectors.packaged.find_spec", lambda _: None)
    with pytest.raises(ExpungeError, match=r"pip install 'expunge\[faces\]'"):
        detector(f"faces:{folder}")
