"""The judge put together from detectors: labels, scores, and rules that are applied on reading."""

import pytest
import torch
from PIL import Image

import toy_judges
from expunge.detectors.base import Detection
from expunge.errors import ExpungeError
from expunge.evaluation.panel import NOTHING_UNSAFE, UNSAFE, Panel, extractor_of, fit_of
from expunge.evaluation.protocols import protocol
from expunge.evaluation.suite import Judgement, Prompt

SQUARE = Image.new("RGB", (16, 16), "teal")
ASKED = Prompt(text="a square", expected={})


@pytest.fixture(autouse=True)
def judges(monkeypatch):
    toy_judges.register(monkeypatch)


def telling(*probabilities: float, names=None, labels=("plain", "drawn", "nsfw", "inappropriate")):
    """A panel whose classifier always says this."""
    looks = toy_judges.Safety()
    looks.labels = labels
    looks.probabilities = lambda pictures: torch.tensor([probabilities]).repeat(len(pictures), 1)
    return Panel("content", looks, looks, names=names)


def test_the_likeliest_label_is_told_with_the_probabilities_of_the_first_five():
    labels = tuple("abcdefg")
    panel = telling(0.05, 0.3, 0.2, 0.15, 0.2, 0.1, 0.0, labels=labels, names={"b": "ball"})
    (judged,) = panel.judge([SQUARE], ["a ball"])
    assert judged.labels == {"content": "ball"}
    assert judged.confidences["content"] == pytest.approx(0.3)
    assert set(judged.scores["content"]) == {"ball", "c", "d", "e", "f"}
    assert judged.clip_score is None


def test_labels_with_one_name_count_together():
    names = {"plain": NOTHING_UNSAFE, "drawn": NOTHING_UNSAFE, "nsfw": UNSAFE}
    names["inappropriate"] = UNSAFE
    (judged,) = telling(0.4, 0.05, 0.3, 0.25, names=names).judge([SQUARE], [""])
    assert judged.labels == {"content": UNSAFE}
    assert judged.scores["content"] == pytest.approx({UNSAFE: 0.55, NOTHING_UNSAFE: 0.45})


def test_a_probability_that_is_no_number_is_never_a_label():
    with pytest.raises(ValueError, match="finite"):
        telling(0.9, float("nan"), 0.05, 0.05).judge([SQUARE], [""])


def found(*scores: float, label: str = "FEET_EXPOSED") -> Judgement:
    each = tuple(Detection(label=label, score=score) for score in scores)
    return Judgement(labels={}, confidences={}, detections={"nudenet": each})


@pytest.mark.parametrize(
    ("rule", "scores", "label"),
    [
        ("nudity/mace", (0.7, 0.3), UNSAFE),
        ("nudity/mace", (0.5,), NOTHING_UNSAFE),
        ("nudity/mace-script", (0.5,), UNSAFE),
        ("nudity/mace-script", (), NOTHING_UNSAFE),
    ],
)
def test_a_rule_is_applied_when_a_judgement_is_read(rule, scores, label):
    looks = toy_judges.Parts()
    panel = Panel("content", looks, looks, protocols=[protocol(rule)])
    read = panel.read(found(*scores), ASKED)
    assert read.labels == {"content": label}
    assert read.score("content", UNSAFE) == max(scores, default=0)
    assert read.detections == found(*scores).detections


def test_names_of_an_older_detector_have_the_same_score():
    looks = toy_judges.Parts()
    panel = Panel("content", looks, looks, protocols=[protocol("nudity/mace")])
    old, new = (panel.read(found(0.8, label=x), ASKED) for x in ("EXPOSED_FEET", "FEET_EXPOSED"))
    assert old.labels == new.labels
    assert old.scores == new.scores == {"content": {UNSAFE: 0.8}}


def test_rules_leave_the_hash_alone_and_all_else_changes_it():
    looks, words = toy_judges.Parts(), toy_judges.Words()
    one = Panel("content", looks, looks, protocols=[protocol("nudity/mace")])
    two = Panel("content", looks, looks, protocols=[protocol("nudity/mace-script")])
    others = (
        Panel("object", looks, looks),
        Panel("content", looks, looks, fit=words),
        Panel("content", looks, looks, names={"a": "b"}),
        Panel("content", None, looks),
    )
    assert one.sha256 == two.sha256
    assert one.decision != two.decision
    assert len({one.sha256, *(other.sha256 for other in others)}) == 5


def test_a_panel_without_a_classifier_measures_fit_alone():
    panel = Panel("", None, toy_judges.Things(), fit=toy_judges.Words())
    (judged,) = panel.judge([SQUARE], ["a square"])
    assert judged.labels == {}
    assert judged.clip_score is not None
    assert panel.read(judged, ASKED) == judged


def test_features_come_from_the_judge_where_it_has_them():
    looks = toy_judges.Parts()
    assert extractor_of(looks) is looks
    assert isinstance(extractor_of(None), toy_judges.Things)


def test_a_clip_is_named_with_or_without_its_kind():
    assert fit_of("") is None
    assert isinstance(fit_of("folder"), toy_judges.Words)
    assert isinstance(fit_of("clip:folder"), toy_judges.Words)


def test_a_package_that_is_not_there_is_named(monkeypatch):
    from expunge.detectors import DETECTORS, packaged
    from expunge.evaluation.suites import unsafe

    monkeypatch.setitem(DETECTORS.places, "opennsfw", "expunge.detectors.opennsfw:OpenNSFW")
    monkeypatch.setattr(packaged, "find_spec", lambda name: None)
    with pytest.raises(ExpungeError, match=r"isn't installed; pip install 'expunge\[eval\]'"):
        unsafe.judge(unsafe.NO_OPTIONS, [])
