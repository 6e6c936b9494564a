"""CLIP from a folder: what it computes, what it refuses, and that it means something."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn.functional import cosine_similarity, cross_entropy, normalize
from transformers import AutoImageProcessor, CLIPModel, CLIPTokenizer

import tiny_clip
from expunge.detectors import Classifier, Extractor, ImageText, detector
from expunge.detectors.vocabulary import word_classifier
from expunge.errors import ExpungeError

RED, BLUE = (220, 30, 30), (30, 30, 220)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("clip")
    tiny_clip.save(place)
    return place


def test_it_is_what_its_protocols_say(folder: Path) -> None:
    clip = detector(f"clip:{folder}")
    assert isinstance(clip, Extractor)
    assert isinstance(clip, ImageText)
    assert isinstance(clip.zero_shot(["cat", "dog"]), Classifier)


def test_scores_are_a_hundred_cosines_of_transformers_own(folder: Path) -> None:
    pictures = [tiny_clip.noise(seed) for seed in range(3)]
    texts = ["a cat", "a dog", "a cat"]
    scores = detector(f"clip:{folder}").scores(pictures, texts)
    model = CLIPModel.from_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    tokens = CLIPTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        output = model(**tokens, **processor(images=pictures, return_tensors="pt"))
    expected = 100 * cosine_similarity(output.image_embeds, output.text_embeds)
    torch.testing.assert_close(scores, expected)
    assert scores.min() < 0  # nothing is cut


def test_more_pictures_than_a_batch_are_judged_as_each_by_itself(folder: Path) -> None:
    clip = detector(f"clip:{folder}")
    pictures = [tiny_clip.noise(seed, side=16 + seed % 5) for seed in range(35)]
    alone = torch.cat([clip.features([picture]) for picture in pictures])
    torch.testing.assert_close(clip.features(pictures), alone)


def test_long_texts_are_cut_to_the_context(folder: Path) -> None:
    clip, words = detector(f"clip:{folder}"), ["cat"] * 14
    whole, longer = clip.text_features([" ".join(words), " ".join([*words, "dog", "dog"])])
    torch.testing.assert_close(whole, longer)


def test_the_identity_is_of_the_weights_and_not_of_their_files(
    folder: Path, tmp_path: Path
) -> None:
    identity = detector(f"clip:{folder}").identity
    copy = tmp_path / folder.name
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / "README.md").write_text("a note")
    assert detector(f"clip:{copy}").identity == identity
    weights = load_file(copy / "model.safetensors")
    weights["logit_scale"] += 1
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert detector(f"clip:{copy}").identity.sha256 != identity.sha256


def test_a_fitted_clip_tells_what_it_was_shown(tmp_path: Path) -> None:
    model = tiny_clip.save(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    pictures = [tiny_clip.plain(RED), tiny_clip.plain(BLUE)]
    texts = ["a photo of the cat", "a photo of the dog"]
    tokens = CLIPTokenizer.from_pretrained(tmp_path)(texts, padding=True, return_tensors="pt")
    pixels = processor(images=pictures, return_tensors="pt")["pixel_values"]
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(40):
        images = normalize(model.get_image_features(pixels).pooler_output)
        words = normalize(model.get_text_features(**tokens).pooler_output)
        loss = cross_entropy(10 * images @ words.T, torch.arange(2))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.save_pretrained(tmp_path)
    clip = detector(f"clip:{tmp_path}")
    zero_shot = clip.zero_shot(["cat", "dog"])
    shown = [tiny_clip.plain(BLUE, (40, 40)), tiny_clip.plain(RED, (17, 30))]
    probabilities = zero_shot.probabilities(shown)
    assert probabilities.argmax(-1).tolist() == [1, 0]
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(2))
    scores = torch.stack([clip.scores(shown, [text] * 2) for text in texts], -1)
    torch.testing.assert_close(probabilities, scores.softmax(-1))
    assert word_classifier(clip, ["cat", "dog"]).likeliest_words(shown) == ["dog", "cat"]


def test_wrong_calls_are_explained(folder: Path) -> None:
    clip, picture = detector(f"clip:{folder}"), tiny_clip.plain(RED)
    with pytest.raises(ExpungeError, match="no picture to look at"):
        clip.features([])
    with pytest.raises(ExpungeError, match="1 pictures but 2 texts"):
        clip.scores([picture], ["a cat", "a dog"])
    for labels in (["cat"], ["cat", "cat"]):
        with pytest.raises(ExpungeError, match="at least two labels, each once"):
            clip.zero_shot(labels)
    with pytest.raises(ExpungeError, match=r"has no \{\} where"):
        clip.zero_shot(["cat", "dog"], template="a photo")


def test_a_result_that_is_not_finite_is_an_error(folder: Path, tmp_path: Path) -> None:
    model = CLIPModel.from_pretrained(folder)
    model.visual_projection.weight.data[0] = torch.nan
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    model.save_pretrained(tmp_path)
    with pytest.raises(ExpungeError, match="isn't finite for 1 of 2"):
        detector(f"clip:{tmp_path}").features([Image.new("RGB", (8, 8))] * 2)


def test_missing_models_and_missing_weights_are_explained(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ExpungeError, match="which CLIP"):
        detector("clip:")
    with pytest.raises(ExpungeError, match="not downloaded yet: hf download nobody/clip"):
        detector("clip:nobody/clip")
    with pytest.raises(ExpungeError, match="can't load this model"):
        detector(f"clip:{tmp_path}")
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ExpungeError, match=r"1 weights are missing, e\.g\. text_projection"):
        detector(f"clip:{tmp_path}")
