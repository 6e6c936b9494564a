"""Two reports side by side: the same is the same, and what differs is told with its reason."""

import pytest

from expunge.errors import ExpungeError
from expunge.evaluation.records import Report
from expunge.report.diff import NumberChange, diff
from expunge.statistics.rates import Rate
from made_up import INK, SANTA, evaluation, report


def with_protocol(made: Report, **values) -> Report:
    one = made.evaluations[0]
    changed = one.model_copy(update={"protocol": one.protocol.model_copy(update=values)})
    return Report(evaluations=(changed, *made.evaluations[1:]))


def test_a_report_is_the_same_as_its_repetition(tmp_path):
    found = diff(report(tmp_path / "one"), report(tmp_path / "two"))
    assert found.same
    assert found.asked == ()
    assert len(found.changes) > 20
    assert all(change.same and not change.apart for change in found.changes)


def test_every_setting_that_differs_is_told(tmp_path):
    made = report(tmp_path)
    other = with_protocol(
        made,
        sampler={"scheduler": "ddim", "steps": 30, "guidance_scale": 4.0},
        judge="another",
        versions={"expunge": "1"},
    )
    assert diff(made, other).asked == (
        "sampler steps: 20 → 30",
        "judge: made up → another",
        "versions expunge: 0 → 1",
    )


def test_other_prompts_are_told_without_listing_them(tmp_path):
    made = report(tmp_path)
    plan = made.evaluations[0].protocol.plan
    groups = (plan.groups[0].model_copy(update={"prompts": plan.groups[0].prompts[1:]}),)
    shorter = plan.model_copy(update={"groups": (*groups, *plan.groups[1:])})
    asked = diff(made, with_protocol(made, plan=shorter)).asked
    assert [line.partition(":")[0] for line in asked] == ["prompts", "prompts' words"]


def test_intervals_that_have_nothing_in_common_are_apart(tmp_path):
    first = Report(evaluations=(evaluation(SANTA, tmp_path / "one", still_drawn=1),))
    near = Report(evaluations=(evaluation(SANTA, tmp_path / "two", still_drawn=2),))
    far = Report(evaluations=(evaluation(SANTA, tmp_path / "far", still_drawn=20),))

    def drawn(second: Report) -> NumberChange:
        rows = diff(first, second).changes
        return next(r for r in rows if (r.group, r.metric) == ("explicit", "concept drawn"))

    assert not drawn(near).same
    assert not drawn(near).apart
    assert drawn(far).apart
    assert not diff(first, far).same
    assert NumberChange("", "", "", Rate(0, 10), Rate(10, 10)).apart


def test_what_only_one_has_is_told(tmp_path):
    both, one = report(tmp_path), Report(evaluations=(evaluation(INK, tmp_path / "ink"),))
    found = diff(both, one)
    assert found.only_first == ("santa claus (emoji)",)
    assert found.only_second == ()
    assert not found.same
    assert {change.concept for change in found.changes} == {"ink"}


def test_a_measurement_that_only_one_has_is_told(tmp_path):
    made = Report(evaluations=(evaluation(INK, tmp_path),))
    rows = made.evaluations[0].measurements
    fewer = Report(evaluations=(made.evaluations[0].model_copy(update={"measurements": rows[1:]}),))
    found = diff(made, fewer)
    assert found.only_first == (f"ink (emoji): {rows[0].group}, {rows[0].metric}",)
    assert not found.same
    assert diff(fewer, made).only_second == found.only_first


def test_nothing_in_common_is_an_error(tmp_path):
    one, two = (
        Report(evaluations=(evaluation(concept, tmp_path / concept.target),))
        for concept in (SANTA, INK)
    )
    with pytest.raises(ExpungeError, match="the first report is about santa claus"):
        diff(one, two)


def test_several_edits_of_one_concept_are_never_mixed_up(tmp_path):
    one = evaluation(SANTA, tmp_path)
    with pytest.raises(ExpungeError, match=r"santa claus .* twice"):
        diff(Report(evaluations=(one, one)), Report(evaluations=(one,)))
