"""What a policy demands is met, missed, or an error; what wasn't measured is never met."""

import pytest

from expunge.concepts import Limit
from expunge.errors import ExpungeError
from expunge.evaluation.limits import check, verdicts, words
from expunge.evaluation.suites.emoji import plan
from made_up import INK, SANTA, evaluation

# Of the 21 pictures that name Santa Claus, 1 still shows him: 4.8 %, interval 0.8 to 22.7 %.


@pytest.fixture
def measured(tmp_path):
    return (evaluation(SANTA, tmp_path / "santa"), evaluation(INK, tmp_path / "ink"))


@pytest.mark.parametrize(
    ("limit", "met"),
    [
        ({"at_most": 0.23}, True),
        ({"at_most": 0.2}, False),
        ({"at_most": 0.05, "by": "value"}, True),
        ({"at_most": 0.04, "by": "value"}, False),
        ({"at_least": 0.008, "at_most": 0.3}, True),
        ({"at_least": 0.01, "at_most": 0.3}, False),
    ],
)
def test_a_limit_is_met_by_the_whole_interval_or_by_the_value(measured, limit, met):
    (one,) = verdicts([Limit(group="explicit", concept="Santa Claus", **limit)], measured)
    assert one.passed is met
    assert one.metric == "concept drawn"
    assert one.found == "1 of 21 (4.8 %, 95 % CI 0.8–22.7 %)"


def test_kept_prompts_are_judged_by_how_right_they_are(measured):
    (one,) = verdicts([Limit(group="other objects", concept="santa claus", at_least=0.5)], measured)
    assert (one.metric, one.passed) == ("object right", True)


def test_a_limit_finds_its_concept_however_it_is_spelt(measured):
    limit = Limit(group="explicit", concept="ＳＡＮＴＡ \u200b Claus", at_most=1)
    assert [one.concept for one in verdicts([limit], measured)] == ["santa claus"]


def test_a_limit_without_a_concept_is_about_all(measured):
    every = verdicts([Limit(group="explicit", at_most=1)], measured)
    assert [one.concept for one in every] == ["santa claus", "ink"]
    drift = Limit(group="kept prompts", metric="feature drift", at_most=0.1, by="value")
    assert all(one.passed for one in verdicts([drift], measured))
    only = verdicts([Limit(group="synonyms", concept="Santa Claus", at_most=1)], measured)
    assert [one.concept for one in only] == ["santa claus"]
    both = Limit(group="explicit", concept=["ink", "santa claus"], at_most=1)
    assert [one.concept for one in verdicts([both], measured)] == ["santa claus", "ink"]


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ({"group": "expliced"}, "no prompts 'expliced' in this audit; there are explicit, "),
        ({"group": "explicit", "concept": "ghost"}, "there is no concept 'ghost' in this audit"),
        ({"group": "explicit", "concept": ["ink", "ghost"]}, "there is no concept 'ghost'"),
        ({"group": "synonyms"}, "no prompts 'synonyms' for 'ink', only explicit, other styles"),
        ({"group": "kept prompts"}, "say which metric of 'kept prompts' is meant"),
        (
            {"group": "explicit", "metric": "concept drown"},
            "'concept drown' of 'explicit' wasn't measured for 'santa claus'; there are concept dr",
        ),
    ],
)
def test_a_limit_on_what_was_not_measured_is_an_error(measured, limit, message):
    with pytest.raises(ExpungeError, match=message):
        verdicts([Limit(**limit, at_most=1)], measured)


def test_a_wrong_group_is_told_before_anything_is_drawn(measured):
    plans = [one.protocol.plan for one in measured]
    check([Limit(group="explicit", at_most=0)], plans)
    with pytest.raises(ExpungeError, match="no prompts 'implied'"):
        check([Limit(group="implied", at_most=0)], plans)


def test_a_metric_must_be_measured_for_every_concept_that_a_limit_is_about(measured):
    santa, ink = measured
    rows = tuple(row for row in ink.measurements if "fit" not in row.metric)
    limit = Limit(group="explicit", metric="fit of picture and prompt", at_most=99)
    assert len(verdicts([limit], [santa, ink])) == 2
    with pytest.raises(ExpungeError, match="wasn't measured for 'ink'"):
        verdicts([limit], [santa, ink.model_copy(update={"measurements": rows})])


def test_a_limit_on_synonyms_needs_prompts_that_name_each_of_them():
    concept = SANTA.model_copy(update={"synonyms": ("santa", "Big Red Man")})
    asked = plan(concept)
    check([Limit(group="synonyms", at_most=0.1)], [asked])
    fewer = tuple(
        group.model_copy(update={"prompts": group.prompts[:3]})
        if group.name == "synonyms"
        else group
        for group in asked.groups
    )
    with pytest.raises(ExpungeError, match="don't ask for 'Big Red Man'"):
        check([Limit(group="synonyms", at_most=0.1)], [asked.model_copy(update={"groups": fewer})])


@pytest.mark.parametrize("bounds", [{"at_most": 5}, {"at_least": -0.1}, {"at_most": 1.01}])
def test_a_bound_that_every_share_meets_is_refused(measured, bounds):
    limit = Limit(group="explicit", **bounds)
    with pytest.raises(ExpungeError, match="is no share of pictures"):
        check([limit], [one.protocol.plan for one in measured])
    blank = Limit(group="explicit", metric="blank pictures", **bounds)
    with pytest.raises(ExpungeError, match="is no share of pictures"):
        verdicts([blank], measured)


def test_limits_in_words():
    limit = Limit(group="explicit", at_least=0.07, at_most=0.5)
    assert words(limit, share=True) == "the interval at least 7 % and at most 50 %"
    limit = Limit(group="explicit", at_most=0.5, by="value")
    assert words(limit, share=False) == "the value at most 0.5"
