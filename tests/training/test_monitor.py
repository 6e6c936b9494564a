"""A training that is looked at or logged is the same training, until a look ends it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from PIL import Image

import toy_judges
from expunge import Concept, Edit, ExpungeError, Model, Policy, erase, load
from expunge.detectors import DETECTORS, Identity
from expunge.generation import Sampler
from expunge.generation.sampling import ImageRequest
from expunge.training import checkpoint, monitor
from expunge.training.loop import Monitor
from expunge.training.monitor import PICTURES, stop_conditions

SHORT: dict[str, Any] = {
    "iterations": 6, "trajectories": 2, "num_inference_steps": 4, "lr": 3e-3,
    "optimizer": "torch.optim.SGD",
}  # fmt: skip
QUICK: dict[str, Any] = {
    "every": 2, "pictures": 3, "sampler": Sampler(steps=2), "judge": "as at first",
}  # fmt: skip
POLICY = Policy.of(Concept(target="ghost", anchor="dog", keep=["cat"]))


class Head:
    """A classifier to which a picture shows the word if it is like those that it saw first."""

    identity = Identity(name="as at first", version="", sha256="")

    def __init__(self, word: str) -> None:
        self.labels = (word, "something else")
        self.first: list[np.ndarray] = []

    def probabilities(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        arrays = [np.asarray(picture).astype(float) for picture in pictures]
        self.first.extend(arrays if not self.first else [])
        moved = [np.abs(a - b).mean() for a, b in zip(arrays, self.first, strict=True)]
        return torch.eye(2)[[0 if distance < 0.5 else 1 for distance in moved]]


class AsAtFirst:
    identity = Head.identity

    def __init__(self, weights: str = "") -> None:
        self.heads = tuple(Head(word) for word in ("ghost", "noto", "cat", "dog"))


class Broken:
    """A classifier that gives what a test says."""

    identity = Identity(name="broken", version="", sha256="")
    labels = ("ghost", "cat")
    gives = torch.zeros(0)

    def __init__(self, weights: str = "") -> None:
        pass

    def probabilities(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        return self.gives


class Always:
    """A classifier that finds its second label in everything."""

    identity = Identity(name="always", version="", sha256="")

    def __init__(self, labels: tuple[str, ...]) -> None:
        self.labels = labels

    def probabilities(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        return torch.eye(len(self.labels))[[1] * len(pictures)]


class Open:
    """An image-text model that remembers what it was to choose among."""

    identity = Identity(name="open", version="", sha256="")
    asked: tuple[tuple[str, ...], ...] = ()

    def __init__(self, weights: str) -> None:
        assert weights == "here"

    def scores(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> torch.Tensor:
        raise AssertionError("previews ask for labels, not for scores")

    def zero_shot(self, labels: tuple[str, ...], template: str = "") -> Always:
        Open.asked += (labels,)
        return Always(labels)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Detectors as another package would add them."""
    places = {"as at first": AsAtFirst, "broken": Broken, "open": Open, "boxes": toy_judges.Parts}
    for name, built in places.items():
        place = f"{built.__module__}:{built.__name__}"
        monkeypatch.setitem(DETECTORS.places, name, place)  # type: ignore[arg-type]


class Records(GeneralTracker):
    """Keeps what it is told."""

    name = "records"
    requires_logging_directory = False
    told: tuple[dict[str, float], ...] = ()

    def __init__(self, run: str, **_: object) -> None:
        super().__init__()

    @property
    def tracker(self) -> None:
        return None

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        pass

    def log(self, values: dict[str, float], step: int | None = None, **_: object) -> None:
        Records.told += ({**values, "step": step or 0},)


def watch(text: str, policy: Policy = POLICY, **options: Any) -> Monitor:
    return monitor.monitor(text, policy, **{**QUICK, **options})


def test_looked_at_or_tracked_it_is_the_same_edit(
    pico: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "records", Records)
    monkeypatch.setattr(Records, "told", ())
    alone = erase(pico, POLICY, "esd", **SHORT)
    seen = watch("erased<=0 and kept<=0")
    looked_at = erase(
        pico, POLICY, "esd", monitor=seen, tracker="records", checkpoints=tmp_path, **SHORT
    )
    assert looked_at.id == alone.id
    assert alone.provenance[0].steps == 6
    log = (tmp_path / checkpoint.LOG).read_text().splitlines()
    assert len(log) == len(Records.told) == 6
    assert [record["step"] for record in Records.told] == [1, 2, 3, 4, 5, 6]
    assert [("erased" in one, "kept" in one) for one in Records.told] == [
        (False,) * 2,
        (True,) * 2,
    ] * 3


def test_scores_follow_the_weights_and_end_the_training(pico: Model, tmp_path: Path) -> None:
    values = {**SHORT, "iterations": 40, "lr": 30.0, "max_grad_norm": 1.0, "train_method": "full"}
    seen = watch("erased<0.5")
    monitor.check(seen, pico)
    assert seen.score(pico) == {"erased": 1.0}
    edit = erase(pico, POLICY, "esd", monitor=seen, checkpoints=tmp_path, **values)
    steps = edit.provenance[0].steps
    assert steps is not None
    assert steps < 40
    assert steps % 2 == 0
    with edit.applied(pico):
        assert seen.score(pico)["erased"] < 0.5
    again = erase(pico, POLICY, "esd", monitor=seen, checkpoints=tmp_path, **values)
    assert again.id == edit.id


def requested(seen: Monitor, monkeypatch: pytest.MonkeyPatch) -> list[ImageRequest]:
    """What a look draws."""
    requests: list[ImageRequest] = []

    def draw(_: object, asked: Sequence[ImageRequest], __: object) -> Any:
        requests.extend(asked)
        return ((request, torch.zeros(8, 8, 3, dtype=torch.uint8)) for request in asked)

    with monkeypatch.context() as patch:
        patch.setattr(monitor, "sample", draw)
        seen.score(None)  # type: ignore[arg-type]
    return requests


def test_every_look_draws_the_same_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, other = watch("erased<=0"), watch("erased<=0", seed=1)
    first, again, shifted = (requested(one, monkeypatch) for one in (seen, seen, other))
    assert first == again
    assert len({request.seed for request in first + shifted}) == 2 * len(first)


def test_what_would_end_the_training_at_once_is_refused(pico: Model) -> None:
    with pytest.raises(ExpungeError, match=r"would end the training at once \(erased 1.00\)"):
        monitor.check(watch("erased>0.9"), pico)


@pytest.mark.parametrize(
    ("text", "scores", "holds"),
    [
        ("erased<=0.05", {"erased": 0.05}, True),
        ("erased < .05", {"erased": 0.05}, False),
        ("erased<=0.1 and kept>=0.8", {"erased": 0.0, "kept": 0.8}, True),
        ("erased<=0.1 and kept > 0.8", {"erased": 0.0, "kept": 0.8}, False),
        ("erased<=0.1", {"loss": 0.0}, False),
    ],
)
def test_all_comparisons_must_hold(text: str, scores: dict[str, float], holds: bool) -> None:
    assert all(one.holds(scores) for one in stop_conditions(text)) == holds
    assert watch(text).stop(scores) == holds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is no comparison; write e.g. erased<=0.05"),
        ("erased", "'erased' is no comparison"),
        ("erased=0.1", "'erased=0.1' is no comparison"),
        ("erased<=5%", "'erased<=5%' is no comparison"),
        ("erased<=0.1 or kept>1", "is no comparison"),
        ("lost<=0.1", "no score 'lost'; there are erased, kept"),
        ("erased<=5", "compares a share, which is from 0 to 1"),
    ],
)
def test_wrong_texts_are_explained(text: str, message: str) -> None:
    with pytest.raises(ExpungeError) as caught:
        stop_conditions(text)
    assert message in str(caught.value)


def test_kept_words_must_be_named(pico: Model) -> None:
    with pytest.raises(ExpungeError, match="name words to keep"):
        watch("kept>=0.8", Policy.of("ghost"))
    with pytest.raises(ExpungeError, match="at least 1"):
        watch("erased<=0.1", every=0)


def test_every_concept_and_every_wording_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    ghost = Concept(target="ghost", synonyms=["spook"])
    policy = Policy(erase=(ghost, Concept(target="noto", kind="style")), keep=("cat", "dog"))
    drawn = requested(watch("erased<=0.1", policy, pictures=PICTURES), monkeypatch)
    assert len({request.seed for request in drawn}) == len(drawn) == PICTURES
    for concept, part in zip(
        policy.erase, (drawn[: PICTURES // 2], drawn[PICTURES // 2 :]), strict=True
    ):
        assert {request.prompt for request in part} == {pair.erase for pair in concept.pairs()}
    few = watch("erased<=0.1 and kept>0", policy, pictures=1, contexts=("a {}",))
    prompts = [request.prompt for request in requested(few, monkeypatch)]
    assert prompts == ["a ghost", "a noto", "a cat"]


def test_what_has_no_labels_chooses_among_all_words_at_hand(
    monkeypatch: pytest.MonkeyPatch, pico: Model
) -> None:
    monkeypatch.setattr(Open, "asked", ())
    ghost = Concept(target="ghost", anchor="robot")
    policy = Policy(erase=(ghost, Concept(target="santa")), keep=("cat",))
    seen = watch("erased<=0.1 and kept>=0.5", policy, judge="open:here")
    assert Open.asked == (("ghost", "santa", "robot", "cat"),)
    assert seen.score(pico) == {"erased": 0.5, "kept": 0.0}
    with pytest.raises(ExpungeError, match="there is only 'ghost'; name an anchor or words"):
        watch("erased<=0.1", Policy.of("ghost"), judge="open:here")


@pytest.mark.parametrize(
    "gives",
    [
        torch.zeros(0, 2),
        torch.eye(2)[[1, 1]],
        torch.eye(3)[[2, 2, 2]],
        torch.zeros(3, 2),
        torch.full((3, 2), torch.nan),
    ],
)
def test_no_verdict_is_never_erased(
    gives: torch.Tensor, monkeypatch: pytest.MonkeyPatch, pico: Model
) -> None:
    monkeypatch.setattr(Broken, "gives", gives)
    with pytest.raises(ExpungeError, match="broken failed"):
        watch("erased<=0.1", judge="broken").score(pico)


def test_what_cannot_tell_the_words_is_refused() -> None:
    with pytest.raises(ExpungeError, match="can't tell 'spook' among ghost, cat"):
        watch("erased<=0.1", Policy.of("spook"), judge="broken")
    with pytest.raises(ExpungeError, match="nudenet is no classifier"):
        watch("erased<=0.1", judge="boxes")
    with pytest.raises(ExpungeError, match="unknown detector 'clop'"):
        watch("erased<=0.1", judge="clop:here")


def test_the_bundled_model_and_its_judge() -> None:
    """A closed-form edit shows in the share; what the judge doesn't know is refused."""
    model, concept = load("emoji", device="cpu"), Concept(target="ink", kind="style", anchor="noto")
    contexts = ("santa claus, {} style", "dog, {} style")
    seen = watch(
        "erased<=0.2",
        Policy.of(concept),
        judge="emoji",
        contexts=contexts,
        pictures=4,
        sampler=Sampler(steps=4),
    )
    monitor.check(seen, model)
    edit: Edit = erase(model, concept, "uce", contexts=contexts)
    with edit.applied(model):
        scores = seen.score(model)
    assert seen.stop(scores)
    with pytest.raises(ExpungeError, match="emoji can't tell 'spook' among noto"):
        watch("erased<=0.1", Policy.of("spook"), judge="emoji")
