"""Taking concepts out of an edit: exact where edits come apart, and the model as it was."""

import pytest
import torch

from expunge import Concept, Edit, ExpungeError, Model, erase
from expunge.edits.applied import Applied
from expunge.evaluation.restoration import exactness, restoration, separable, weight_bits
from expunge.generation import Sampler, requests
from expunge.prompts import PromptSet
from expunge.statistics.rates import Rate
from expunge.testing import membrane

FAST = Sampler(steps=2)
TARGETS = ("santa claus", "ghost", "a dog")
ASKED = {
    target: list(requests(PromptSet.of([target, f"a photo of {target}"]))) for target in TARGETS
}


def dark(pictures, words) -> list[bool]:
    """Whether what a word names is seen, which here is decided by brightness."""
    return [sum(picture.convert("L").tobytes()) < 128 * 16 * 16 for picture in pictures]


@pytest.fixture
def edit(pico: Model) -> Edit:
    """Two that come apart, of which the second erases two concepts at once."""
    return erase(pico, "santa claus", "uce") + erase(pico, ["ghost", "a dog"], "uce")


def test_each_part_that_comes_apart_and_all_of_them(pico: Model, edit: Edit) -> None:
    before = weight_bits(pico)
    found = restoration(pico, edit, ASKED, dark, sampler=FAST)
    assert separable(edit) == (("santa claus",), ("ghost", "a dog"))
    assert [row.concepts for row in found.rows] == [*separable(edit), TARGETS]
    assert [row.deviation for row in found.rows] == [0, 0, 0]
    assert [row.base_bits for row in found.rows] == [False, False, True]
    assert [row.restored.n for row in found.rows] == [2, 4, 6]
    whole = found.rows[-1]
    assert whole.same_pictures == Rate(6, 6)
    assert whole.restored == whole.base
    assert whole.difference.value == 0
    assert whole.still_erased is None
    assert found.rows[0].still_erased.n == 4
    assert type(found).model_validate_json(found.model_dump_json()) == found
    assert not Applied.to(pico).components
    assert weight_bits(pico) == before


def test_gates_are_judged_by_the_pictures(pico: Model) -> None:
    santa = Concept(target="santa claus", kind="character")
    edit = membrane(pico, santa) + membrane(pico, Concept(target="ghost"), seed=1)
    found = restoration(pico, edit, ASKED, dark, sampler=FAST)
    assert [row.base_bits for row in found.rows] == [True, True, True]
    assert found.rows[-1].same_pictures == Rate(4, 4)
    assert found.rows[0].same_pictures.n == 2
    assert Applied.to(pico).installed is None


def test_chosen_sets(pico: Model, edit: Edit) -> None:
    (row,) = restoration(pico, edit, ASKED, dark, sets=[["a dog", "ghost"]], sampler=FAST).rows
    assert row.concepts == ("ghost", "a dog")


def test_a_difference_is_found(pico: Model, edit: Edit, monkeypatch: pytest.MonkeyPatch) -> None:
    revert = Edit.revert

    def inexact(self: Edit, model: Model) -> None:
        revert(self, model)
        if Applied.to(model).components:
            name = model.select("cross_attention.kv")[0]
            weight = model.denoiser.get_parameter(name)
            with torch.no_grad():
                weight[0, 0] += 0.5

    monkeypatch.setattr(Edit, "revert", inexact)
    assert exactness(pico, edit, ["santa claus"]) == pytest.approx(0.5, abs=1e-6)


def test_the_model_is_as_it_was_whatever_happens(pico: Model, edit: Edit) -> None:
    before, calls = weight_bits(pico), []

    def failing(pictures, words) -> list[bool]:
        calls.append(len(pictures))
        if len(calls) == 2:
            raise ExpungeError("no judgement")
        return [True] * len(pictures)

    with pytest.raises(ExpungeError, match="no judgement"):
        restoration(pico, edit, ASKED, failing, sampler=FAST)
    assert not Applied.to(pico).components
    assert weight_bits(pico) == before


@pytest.mark.parametrize(
    ("sets", "reason"),
    [([["ghost"]], "together with"), ([["robot"]], "doesn't erase 'robot'"), ([[]], "no concept")],
)
def test_what_cannot_be_taken_out_is_refused(pico: Model, edit: Edit, sets, reason: str) -> None:
    with pytest.raises(ExpungeError, match=reason):
        restoration(pico, edit, ASKED, dark, sets=sets, sampler=FAST)


def test_requests_and_a_judge_that_answers_are_needed(pico: Model, edit: Edit) -> None:
    some = {target: ASKED[target] for target in TARGETS[:2]}
    with pytest.raises(ExpungeError, match="no picture of 'a dog'"):
        restoration(pico, edit, some, dark, sampler=FAST)
    for judge in (lambda pictures, words: [True], lambda pictures, words: [0.5] * len(pictures)):
        with pytest.raises(ExpungeError, match="True or False"):
            restoration(pico, edit, ASKED, judge, sampler=FAST)
    with edit.applied(pico), pytest.raises(ExpungeError, match="revert it"):
        restoration(pico, edit, ASKED, dark, sampler=FAST)
