"""Words and a classifier's labels, and verdicts that are none."""

import pytest
import torch
from PIL import Image

import toy_judges
from expunge.detectors.vocabulary import word_classifier
from expunge.errors import ExpungeError

SQUARE = Image.new("RGB", (16, 16), "teal")


def saying(*probabilities: float) -> toy_judges.Safety:
    looks = toy_judges.Safety()
    looks.probabilities = lambda pictures: torch.tensor([probabilities]).repeat(len(pictures), 1)
    return looks


def test_words_are_matched_with_labels_that_list_several() -> None:
    told = word_classifier(toy_judges.Things(), ["Church Building"])
    assert told.names == {"church, church building": "Church Building"}


def test_labels_of_one_word_count_together() -> None:
    phrases = {"unsafe": ("nsfw", "inappropriate")}
    told = word_classifier(saying(0.4, 0.05, 0.3, 0.25), ["unsafe"], phrases=phrases)
    assert told.likeliest_words([SQUARE]) == ["unsafe"]
    assert word_classifier(saying(0.4, 0.05, 0.3, 0.25), ["nsfw"]).likeliest_words([SQUARE]) == [
        None
    ]


def test_a_word_that_is_not_looked_for_is_never_absent() -> None:
    told = word_classifier(saying(0.0, 0.0, 1.0, 0.0), ["nsfw"])
    assert told.shows([SQUARE], ["nsfw"]) == [True]
    with pytest.raises(ExpungeError, match="'drawn' isn't among the words that are looked for"):
        told.shows([SQUARE], ["drawn"])


def test_words_that_can_only_be_the_same_are_refused() -> None:
    with pytest.raises(ExpungeError, match="give each word once"):
        word_classifier(saying(), ["nsfw", "nsfw"])
    with pytest.raises(ExpungeError, match="one class for 'gas pump' and 'petrol pump'"):
        word_classifier(toy_judges.Things(), ["gas pump", "petrol pump"])
