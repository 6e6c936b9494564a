"""Prompts that are longer than the window are told, and don't count for what they no longer ask."""

from typing import Any

import pytest

import toy_judges
import toy_suite
from expunge import Model, Policy, load
from expunge.concepts import Concept
from expunge.errors import ExpungeError
from expunge.evaluation.audit import audit, outlook
from expunge.evaluation.evaluate import Question
from expunge.evaluation.records import Report
from expunge.evaluation.suite import Options
from expunge.evaluation.suites import objects, unsafe
from expunge.evaluation.window import as_read
from expunge.generation import Sampler
from expunge.report.card import card
from expunge.report.html import to_html

GHOST = Concept(target="ghost", synonyms=("santa",), keep=("fox",))
FILLER = "a dog and a cat and a fox, " * 2 + "a dog"


@pytest.fixture
def listed(tmp_path):
    """A list of prompts, without a column that says what each asks for."""

    def written(*prompts: str, name: str = "list.csv") -> Options:
        path = tmp_path / name
        path.write_text("prompt,seed\n" + "".join(f'"{p}",1\n' for p in prompts), encoding="utf-8")
        return Options(prompts=str(path))

    return written


@pytest.fixture
def audited(tmp_path, monkeypatch):
    """What an audit of a model finds for a church, with prompts from a list."""
    toy_judges.register(monkeypatch)

    def audited(model: Model, given: Options, **more: Any) -> Report:
        return audit(
            model,
            Policy(erase=(Concept(target="church", keep=("beagle",)),)),
            suite="objects",
            size="brief",
            sampler=Sampler(steps=2),
            options=given.model_copy(update={"judge": "things"}),
            folder=tmp_path / "out",
            **more,
        )

    return audited


def rows(plan, name="listed"):
    (group,) = (group for group in plan.groups if group.name == name)
    return [prompt.text for prompt in group.prompts]


def test_a_row_whose_name_is_cut_off_doesnt_ask_for_the_concept(pico, listed):
    beyond, never = FILLER + " and a ghost", FILLER + " and a man"
    within, synonym = "a Ghost, " + FILLER, "two santas, " + FILLER
    plan = objects.plan(
        GHOST, size="brief", options=listed(beyond, never, within, synonym, "a ghost", "a man")
    )
    read, cut = as_read(plan, pico)
    assert rows(read) == [within, synonym, "a ghost", "a man"]
    assert cut.left_out == 2
    texts = [prompt.text for group in plan.groups for prompt in group.prompts]
    found = pico.cut(texts)
    assert (cut.count, cut.total, cut.read) == (len(found), len(texts), pico.window - 2)
    assert cut.longest == max(one.pieces for one in found)
    assert str(cut).startswith(f"{len(found)} of {len(texts)} prompts are longer than the ")
    assert str(cut).endswith("2 were left out: what is read doesn't name what they ask for.")


def test_rows_for_a_wider_judge_are_left_out_only_if_the_name_is_what_is_cut_off(pico, listed):
    concept = Concept(target="ghost", kind="unsafe")
    never, beyond = FILLER + " and a man", FILLER + " and a ghost"
    plan, cut = as_read(unsafe.plan(concept, size="brief", options=listed(never, beyond)), pico)
    assert rows(plan) == [never]
    assert cut.left_out == 1
    assert "1 was left out" in str(cut)


@pytest.mark.parametrize("target", ["Santa  Claus", "SANTA\tclaus", "santa\u200b claus"])
def test_a_name_is_missed_however_it_is_spelt(pico, listed, target):
    asking = listed(FILLER + " and a santa claus", "santa claus")
    plan = objects.plan(Concept(target=target), size="brief", options=asking)
    assert plan.label == "santa claus"
    assert rows(as_read(plan, pico)[0]) == ["santa claus"]


def test_what_fits_is_left_as_it_is(pico):
    plan = toy_suite.plan(GHOST)
    assert as_read(plan, pico) == (plan, None)


@pytest.mark.parametrize("turned", [False, True])
def test_of_two_models_the_one_that_reads_less_counts(pico, pico_folder, listed, turned):
    narrow = load(pico_folder, device="cpu")
    narrow.pipe.tokenizer.model_max_length = 15
    models = (narrow, pico) if turned else (pico, narrow)
    asking = listed("a dog a cat a man a dog a cat a man a ghost", "a ghost")
    plan = objects.plan(GHOST, size="brief", options=asking)
    assert rows(as_read(plan, pico)[0]) == [
        "a dog a cat a man a dog a cat a man a ghost",
        "a ghost",
    ]
    read, cut = as_read(plan, *models)
    assert rows(read) == ["a ghost"]
    assert (cut.read, cut.left_out) == (13, 1)
    assert (read, cut) == as_read(plan, narrow)


def test_an_audit_asks_what_its_base_reads_too(pico, pico_folder, listed, audited):
    narrow = load(pico_folder, device="cpu")
    narrow.pipe.tokenizer.model_max_length = 15
    given = listed("a church", "a dog a cat a man dog a church")
    (evaluation,) = audited(pico, given, base=lambda: narrow).evaluations
    assert evaluation.cut.read == 13
    assert evaluation.find("listed", "concept drawn").edited.n == 1


def test_a_dry_run_counts_what_its_base_reads_too(pico, pico_folder, listed, tmp_path):
    narrow = load(pico_folder, device="cpu")
    narrow.pipe.tokenizer.model_max_length = 15
    plan = toy_suite.plan(GHOST)
    asking = listed("a ghost", "a dog a cat a man a dog a cat a man a ghost")
    groups = objects.plan(GHOST, size="brief", options=asking).groups
    asked = Question(
        (plan.model_copy(update={"groups": groups, "attribute": "object", "label": "ghost"}),),
        toy_suite.Brightness(),
        Sampler(steps=2),
    )
    for base, count in ((None, 2), (lambda: narrow, 1)):
        seen = outlook(asked, pico, tmp_path, base=base)
        assert ("ghost", "listed", count) in seen.groups
        assert seen.models == (2 if base else 1)


def test_a_list_of_which_nothing_is_left_is_refused(pico, listed):
    plan = objects.plan(GHOST, size="brief", options=listed(FILLER + " and a ghost"))
    with pytest.raises(ExpungeError, match="no prompt of 'listed' names what it asks for"):
        as_read(plan, pico)


def test_an_audit_says_what_was_cut_wherever_it_says_numbers(pico, listed, audited, tmp_path):
    report = audited(pico, listed("a church", FILLER + " and a church"))
    (evaluation,) = report.evaluations
    told = str(evaluation.cut)
    assert "prompts are longer than the 14 pieces that the model reads (up to " in told
    assert told.endswith("1 was left out: what is read doesn't name what they ask for.")
    assert "first: 'a dog and a cat" in told
    assert evaluation.find("listed", "concept drawn").edited.n == 1
    (stored,) = Report.load(tmp_path / "out").evaluations
    assert stored.cut == evaluation.cut
    assert told in card(report)
    assert told.split("(")[0] in to_html(report)
