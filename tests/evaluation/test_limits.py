"""What a policy demands is met, missed, or an error; what wasn't measured is never met."""

import pytest

from expunge.concepts import Limit
from expunge.errors import ExpungeError
from expunge.evaluation.limits import check, verdicts, words
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


def test_a_limit_without_a_concept_is_about_all_that_have_the_group(measured):
    every = verdicts([Limit(group="explicit", at_most=1)], measured)
    assert [one.concept for one in every] == ["santa claus", "ink"]
    drift = Limit(group="kept prompts", metric="feature drift", at_most=0.1, by="value")
    assert all(one.passed for one in verdicts([drift], measured))
    only = verdicts([Limit(group="synonyms", at_most=1)], measured)
    assert [one.concept for one in only] == ["santa claus"]


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ({"group": "expliced"}, "no prompts 'expliced' in this audit; there are explicit, "),
        ({"group": "explicit", "concept": "ghost"}, "there is no concept 'ghost' in this audit"),
        (
            {"group": "explicit", "metric": "concept drown"},
            "'concept drown' of 'explicit' wasn't measured; there are concept drawn, ",
        ),
    ],
)
def test_a_limit_on_what_was_not_measured_is_an_error(measured, limit, message):
    with pytest.raises(ExpungeError, match=message):
        verdicts([Limit(**limit, at_most=1)], measured)


def test_a_wrong_group_is_told_before_anything_is_drawn(measured):
    plans = [one.protocol.plan for one in measured]
    check([Limit(group="explicit", at_most=0), Limit(group="kept prompts", at_most=0)], plans)
    with pytest.raises(ExpungeError, match="no prompts 'implied'"):
        check([Limit(group="implied", at_most=0)], plans)


def test_limits_in_words():
    limit = Limit(group="explicit", at_least=0.07, at_most=0.5)
    assert words(limit, share=True) == "the interval at least 7 % and at most 50 %"
    limit = Limit(group="explicit", at_most=0.5, by="value")
    assert words(limit, share=False) == "the value at most 0.5"
