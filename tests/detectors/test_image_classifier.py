"""Classifiers from transformers folders, and how their classes are named."""

from pathlib import Path

import pytest
import torch
from transformers import (
    ConvNextImageProcessor,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    ResNetModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

import tiny_clip
from expunge.detectors import Classifier, detector
from expunge.detectors.image_classifier import class_index, top
from expunge.errors import ExpungeError

LABELS = ("tench, Tinca tinca", "crane", "church, church building", "crane")
NAMES = dict(enumerate(LABELS))


def resnet(**options: object) -> ResNetConfig:
    return ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], id2label=NAMES, **options
    )


def vit() -> ViTConfig:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    return ViTConfig(**sizes, num_attention_heads=2, image_size=16, patch_size=4, id2label=NAMES)


def save(model: PreTrainedModel, folder: Path) -> str:
    model.save_pretrained(folder)
    if isinstance(model, ViTForImageClassification):
        ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    else:
        ConvNextImageProcessor(size={"shortest_edge": 16}).save_pretrained(folder)
    return f"classifier:{folder}"


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_any_classifier_of_transformers_is_loaded(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = (
        ResNetForImageClassification(resnet())
        if kind == "resnet"
        else ViTForImageClassification(vit())
    )
    judge = detector(save(model, tmp_path))
    assert isinstance(judge, Classifier)
    assert judge.labels == LABELS
    pictures = [tiny_clip.noise(seed, side=20 + seed) for seed in range(3)]
    probabilities = judge.probabilities(pictures)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(3))
    alone = torch.cat([judge.probabilities([picture]) for picture in pictures])
    torch.testing.assert_close(probabilities, alone)
    assert detector(f"classifier:{tmp_path}").identity == judge.identity


def test_a_network_without_a_trained_head_is_refused(tmp_path: Path) -> None:
    name = save(ResNetModel(resnet()), tmp_path)
    with pytest.raises(ExpungeError, match=r"weights are missing, e\.g\. classifier"):
        detector(name)


def test_labels_that_do_not_exclude_each_other_are_refused(tmp_path: Path) -> None:
    config = resnet(problem_type="multi_label_classification")
    name = save(ResNetForImageClassification(config), tmp_path)
    with pytest.raises(ExpungeError, match="don't exclude each other"):
        detector(name)


def test_missing_models_are_explained() -> None:
    with pytest.raises(ExpungeError, match="which classifier"):
        detector("classifier:")
    with pytest.raises(ExpungeError, match="hf download nobody/resnet-50"):
        detector("classifier:nobody/resnet-50")


@pytest.mark.parametrize(
    ("label", "index"),
    [
        ("tench", 0),
        ("Tinca tinca", 0),
        ("tinca  tinca", 0),
        ("Church, church building", 2),
        ("CHURCH,\tchurch building", 2),
        (3, 3),
        ("church", 2),
    ],
)
def test_a_class_is_found_by_any_of_its_names(label: str | int, index: int) -> None:
    assert class_index(LABELS, label) == index


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("crane", "classes 1 and 3 are all called 'crane'; give the index"),
        ("ten", "no class 'ten'"),
        ("", "no class ''"),
        (4, "only 0 to 3"),
        (-1, "no class -1"),
    ],
)
def test_a_class_that_is_not_one_is_refused(label: str | int, message: str) -> None:
    with pytest.raises(ExpungeError, match=message):
        class_index(LABELS, label)


def test_the_likeliest_classes_come_first() -> None:
    probabilities = torch.tensor([[0.1, 0.5, 0.4], [0.7, 0.1, 0.2]])
    assert top(probabilities, 2).tolist() == [[1, 2], [0, 2]]
    for k in (0, 4):
        with pytest.raises(ExpungeError, match=f"top {k} of 3"):
            top(probabilities, k)
