"""Training an edited model further: it learns, the records count, the model is as it was."""

from collections.abc import Mapping
from functools import partial

import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from expunge import Concept, Edit, ExpungeError, Model, erase
from expunge.edits.applied import Applied
from expunge.edits.gates import Addition, Tokens
from expunge.edits.membranes import Membranes
from expunge.evaluation.fine_tuning import Captioned, FineTuning
from expunge.evaluation.relearning import relearning
from expunge.evaluation.restoration import weight_bits
from expunge.generation import Sampler, requests, sample
from expunge.models.process import Diffusion
from expunge.prompts import PromptSet
from expunge.statistics.rates import Rate
from expunge.testing import membrane

PROMPTS = ["santa claus", "a photo of santa claus", "a picture of santa claus"]
ASKED = list(requests(PromptSet.of(PROMPTS)))
KEPT = {"cat": list(requests(PromptSet.of(["a cat", "a photo of a cat"])))}
WHITE = [Captioned(Image.new("RGB", (16, 16), "white"), "santa claus")]
BLUE = [Captioned(Image.new("RGB", (16, 16), colour), "a dog") for colour in ("blue", "navy")]
FAST = Sampler(steps=2)
measure = partial(relearning, concept="santa claus", asked=ASKED, kept=KEPT, sampler=FAST)


def bright(pictures, words) -> list[bool]:
    assert words == ["santa claus"] * 3 + ["cat"] * 2
    return [sum(picture.convert("L").tobytes()) > 128 * 16 * 16 for picture in pictures]


@pytest.fixture
def edit(pico: Model) -> Edit:
    return erase(pico, "santa claus", "uce")


def test_a_curve_for_each_kind_of_pictures(pico: Model, edit: Edit) -> None:
    before = weight_bits(pico)
    run = partial(
        measure,
        pico,
        edit,
        pictures={"itself": WHITE, "unrelated": BLUE},
        recognise=bright,
        steps=(0, 1, 3),
        tuning=FineTuning(lr=1e-3, batch=2),
    )
    found = run()
    assert weight_bits(pico) == before
    assert not Applied.to(pico).components
    assert not any(weight.requires_grad for weight in pico.denoiser.parameters())
    assert (found.base.n, found.base_kept.n) == (3, 2)
    assert [(curve.learnt_from, curve.pictures) for curve in found.curves] == [
        ("itself", 1),
        ("unrelated", 2),
    ]
    for curve in found.curves:
        assert [point.steps for point in curve.points] == [0, 1, 3]
        assert {(point.drawn.n, point.kept.n) for point in curve.points} == {(3, 2)}
        assert curve.points[0].gained is None
        assert curve.points[2].gained.value == pytest.approx(
            curve.points[2].drawn.value - curve.points[0].drawn.value
        )
    assert found == run()
    assert found != run(seed=1)
    assert type(found).model_validate_json(found.model_dump_json()) == found


def test_the_loss_goes_down(pico: Model, edit: Edit) -> None:
    found = measure(
        pico,
        edit,
        pictures={"itself": WHITE},
        recognise=bright,
        steps=(5, 25),
        tuning=FineTuning(lr=5e-3, batch=4),
    )
    losses = [point.loss for point in found.curves[0].points[1:]]
    assert losses[1] < losses[0]


@pytest.mark.parametrize("rank", [0, 2])
def test_step_0_is_the_edited_model_and_training_starts_there(
    pico: Model, edit: Edit, rank: int
) -> None:
    """With gates too: a step that changes nothing draws what the edit does."""
    whole = edit + membrane(pico, Concept(target="ghost", synonyms=("santa claus",)))
    asked = [*ASKED, *KEPT["cat"]]

    def pictures() -> list[bytes]:
        return [pixels.numpy().tobytes() for _, pixels in sample(pico, asked, FAST)]

    base = pictures()
    with whole.applied(pico):
        edited = pictures()
    seen = []

    def noting(pictures, words) -> list[bool]:
        seen.append([picture.tobytes() for picture in pictures])
        return [True] * len(pictures)

    tuning = FineTuning(lr=1e-30, role="cross_attention", rank=rank)
    measure(pico, whole, pictures={"it": WHITE}, recognise=noting, steps=(1,), tuning=tuning)
    assert seen == [base, edited, edited]
    assert Applied.to(pico).installed is None
    assert pictures() == base


@pytest.mark.parametrize("method", ["uce", "membrane"])
def test_the_model_is_as_it_was_whatever_happens(
    pico: Model, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    santa = Concept(target="santa claus", kind="character")
    edit = membrane(pico, santa) if method == "membrane" else erase(pico, santa, method)
    before, calls = weight_bits(pico), []

    def failing(pictures, words) -> list[bool]:
        calls.append(weight_bits(pico))
        return [True] * (len(pictures) if len(calls) < 3 else 0)

    learn = partial(measure, pico, edit, pictures={"itself": WHITE}, steps=(1,))
    with pytest.raises(ExpungeError, match="True or False"):
        learn(recognise=failing)
    assert calls[2] != before  # it was drawing with what it had learnt
    assert weight_bits(pico) == before
    monkeypatch.setattr(Diffusion, "target", lambda *_: float("nan") * _[2])
    with pytest.raises(ExpungeError, match="the loss became nan"):
        learn(recognise=bright)
    assert weight_bits(pico) == before
    assert not Applied.to(pico).components
    assert Applied.to(pico).installed is None


def test_gates_that_read_tokens_know_those_of_the_captions(
    pico: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit = membrane(pico, Concept(target="santa claus"), rule="released")
    additions, heard = Membranes.additions, []

    def listening(self: Membranes, conditions: Tensor, tokens: Tokens) -> Mapping[str, Addition]:
        if torch.is_grad_enabled():
            heard.extend(tokens)
        return additions(self, conditions, tokens)

    monkeypatch.setattr(Membranes, "additions", listening)
    measure(pico, edit, pictures={"itself": WHITE}, recognise=bright, steps=(1,))
    assert heard
    assert {tuple(ids) for ids in heard} == {tuple(pico.tokens("santa claus"))}


def test_what_cannot_be_learnt_from_is_refused(pico: Model, edit: Edit) -> None:
    learn = partial(measure, pico, edit, recognise=bright)
    for pictures, reason in (
        ({}, "no pictures to learn from"),
        ({"itself": []}, "itself: no picture"),
        ({"it": [Captioned(Image.new("RGB", (24, 16)), "a dog")]}, "16×24 pixels.*16×16"),
    ):
        with pytest.raises(ExpungeError, match=reason):
            learn(pictures=pictures)
    for kept in ({}, {"cat": []}):
        with pytest.raises(ExpungeError, match="nothing to draw"):
            learn(pictures={"itself": WHITE}, kept=kept)
    for steps in ((), (-1, 5)):
        with pytest.raises(ExpungeError, match="steps"):
            learn(pictures={"itself": WHITE}, steps=steps)
    with edit.applied(pico), pytest.raises(ExpungeError, match="revert it"):
        learn(pictures={"itself": WHITE})
    with pytest.raises(ExpungeError, match="unknown role"):
        learn(pictures={"itself": WHITE}, steps=(1,), tuning=FineTuning(role="some"))
    with pytest.raises(ValidationError):
        FineTuning(lr=0)


def test_step_0_alone_needs_no_training(pico: Model, edit: Edit) -> None:
    found = measure(pico, edit, pictures={"itself": WHITE}, recognise=bright, steps=(0,))
    (point,) = found.curves[0].points
    assert point.loss is None
    assert isinstance(point.drawn, Rate)
