"""The judges know real drawings, say nothing where there is nothing, and refuse bad input."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from expunge.detectors import MultiHead, detector
from expunge.detectors.emoji import NOTHING, Judges, load_judges
from expunge.detectors.vocabulary import word_classifier
from expunge.errors import ExpungeError
from expunge.models.emoji import catalog

DRAWINGS = sorted((Path(__file__).parent / "drawings").glob("*.png"))


@pytest.fixture(scope="module")
def judges() -> Judges:
    return load_judges()


@pytest.fixture(scope="module")
def drawings() -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in DRAWINGS]


def test_the_judges_know_the_catalogue(judges: Judges) -> None:
    assert judges.objects == tuple(entry.name for entry in catalog().objects)
    assert judges.styles == tuple(style.name for style in catalog().styles)


def test_real_drawings_are_recognised(judges: Judges, drawings: list[Image.Image]) -> None:
    seen = judges.classify(drawings)
    expected = [path.stem.split(".") for path in DRAWINGS]
    assert [judges.objects[i] for i in seen.objects.tolist()] == [name for name, _ in expected]
    assert [judges.styles[i] for i in seen.styles.tolist()] == [style for _, style in expected]
    total = seen.object_probabilities.sum(-1) + seen.nothing_probability
    torch.testing.assert_close(total, torch.ones(len(drawings)))


def test_its_heads_say_what_it_classifies(judges: Judges, drawings: list[Image.Image]) -> None:
    found = detector("emoji")
    assert isinstance(found, MultiHead)
    blank = Image.new("RGB", (64, 64), "white")
    seen = judges.classify([*drawings, blank])
    things = [(*judges.objects, NOTHING)[index] for index in seen.objects.tolist()]
    styles = [judges.styles[index] for index in seen.styles.tolist()]
    assert (
        word_classifier(found, [*judges.objects, NOTHING]).likeliest_words([*drawings, blank])
        == things
    )
    for named in (judges.styles, [f"{style} style" for style in judges.styles]):
        words = word_classifier(found, named).likeliest_words([*drawings, blank])
        assert words == [named[judges.styles.index(style)] for style in styles]
    some = word_classifier(found, things[:1]).likeliest_words([*drawings, blank])
    assert some == [thing if thing == things[0] else None for thing in things]


def test_words_of_two_heads_are_refused() -> None:
    with pytest.raises(ExpungeError, match=r"'ghost' among noto, .*, nor 'ink' among dog face"):
        word_classifier(detector("emoji"), ["ink", "ghost"])
    with pytest.raises(ExpungeError, match="its own weights"):
        detector("emoji:folder")


def test_blank_and_noise_are_nothing(judges: Judges) -> None:
    blank = torch.full((1, 3, 64, 64), 255, dtype=torch.uint8)
    noise = torch.randint(256, (3, 3, 64, 64), generator=torch.Generator().manual_seed(1))
    seen = judges.classify(torch.cat([blank, noise.to(torch.uint8)]))
    assert seen.objects.tolist() == [-1] * 4


def test_the_right_text_fits_better(judges: Judges, drawings: list[Image.Image]) -> None:
    texts = ["{}, {} style".format(*path.stem.split(".")) for path in DRAWINGS]
    right = judges.clip_score(drawings, texts)
    wrong = judges.clip_score(drawings, texts[1:] + texts[:1])
    assert bool((right > wrong + 10).all())
    assert bool((wrong >= 0).all())
    assert bool((right <= 100).all())


def test_the_batch_does_not_change_the_judgement(
    judges: Judges, drawings: list[Image.Image]
) -> None:
    together = judges.classify(drawings).object_probabilities
    alone = torch.cat([judges.classify([image]).object_probabilities for image in drawings])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    assert torch.equal(together, judges.classify(drawings).object_probabilities)


def test_features_tell_drawings_apart(judges: Judges, drawings: list[Image.Image]) -> None:
    features = judges.features(drawings)
    distances = torch.cdist(features, features) + 1e6 * torch.eye(len(drawings))
    assert float(distances.min()) > 0.1


def test_no_images_is_an_error(judges: Judges) -> None:
    with pytest.raises(ExpungeError, match="no images"):
        judges.classify([])


def test_a_wrong_size_is_an_error(judges: Judges) -> None:
    with pytest.raises(ExpungeError, match="64x64"):
        judges.classify([Image.new("RGB", (65, 64))])


def test_pixels_that_are_not_uint8_are_an_error(judges: Judges) -> None:
    with pytest.raises(ExpungeError, match="uint8"):
        judges.features(torch.zeros(1, 3, 64, 64))


def test_a_prompt_too_few_is_an_error(judges: Judges, drawings: list[Image.Image]) -> None:
    with pytest.raises(ExpungeError, match="prompts"):
        judges.clip_score(drawings, ["bomb"])
