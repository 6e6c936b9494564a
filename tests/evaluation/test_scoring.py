"""From judgements to measurements, with outcomes that are known."""

import pytest
from pydantic import ValidationError

from expunge.errors import ExpungeError
from expunge.evaluation.records import Evaluation, Report
from expunge.evaluation.scoring import CLIP, DRAWN, FEATURES, KEPT, Unrelated, measure, right_of
from expunge.evaluation.suites.emoji import plan
from expunge.statistics.rates import Estimate, Rate
from made_up import INK, SANTA, evaluation, pairs, report

SCALE = Unrelated(Estimate(0.6, (0.5, 0.7), 9), Estimate(0.3, (0.2, 0.4), 9))


def test_a_character_is_counted_where_it_is_asked_for_and_the_rest_where_it_is_kept(tmp_path):
    made = evaluation(SANTA, tmp_path, still_drawn=1, broken=2)
    explicit = made.find("explicit", DRAWN)
    assert (explicit.base, explicit.edited) == (Rate(21, 21), Rate(1, 21))
    assert not explicit.higher_is_better
    assert explicit.difference.value == pytest.approx(-20 / 21)
    assert made.find("synonyms", DRAWN).edited.successes == 1
    near = made.find("neighbours", right_of("object")).base.n
    assert made.find("neighbours", right_of("object")).edited == Rate(near - 2, near)
    assert made.find("neighbours", right_of("style")).edited == Rate(near, near)
    assert made.find("explicit", right_of("style")).edited == Rate(21, 21)
    assert made.drawn_instead == (("nothing", 20), ("santa claus", 1))


def test_a_style_is_counted_by_style(tmp_path):
    made = evaluation(INK, tmp_path)
    count = made.find("explicit", DRAWN).base.n
    assert made.find("explicit", DRAWN).edited == Rate(1, count)
    assert made.find("explicit", right_of("object")).edited == Rate(count, count)
    other = made.find("other styles", right_of("style"))
    assert other.base.successes - other.edited.successes == 2
    assert other.higher_is_better


def test_scores_and_drift_carry_intervals_and_a_scale(tmp_path):
    made = evaluation(SANTA, tmp_path)
    score = made.find("explicit", CLIP)
    assert score.base.value == 31
    assert score.difference.interval[1] < 0
    drift = made.find(KEPT, FEATURES)
    assert drift.base is None
    assert drift.reference.value == 0.6
    kept = [made.find(group, CLIP) for group in ("neighbours", "other objects")]
    assert drift.edited.n == sum(score.edited.n for score in kept)


def test_a_missing_picture_stops_the_scoring(tmp_path):
    asked = plan(SANTA)
    with pytest.raises(ExpungeError, match=r"1 of .* pictures are missing"):
        measure(asked, pairs(asked, tmp_path)[1:], SCALE)


def test_what_was_erased_is_never_shown_without_what_was_kept(tmp_path):
    made = evaluation(SANTA, tmp_path)
    alone = [row for row in made.measurements if row.group != "other objects"]
    with pytest.raises(ValidationError, match="not shown without what it kept"):
        Evaluation(**{**dict(made), "measurements": tuple(alone)})
    asked = plan(SANTA)
    with pytest.raises(ValidationError, match="no retention group"):
        type(asked)(**{**dict(asked), "groups": asked.of_role("efficacy")})


def test_a_report_moves_with_its_folder(tmp_path):
    made = report(tmp_path / "here")
    path = made.save(tmp_path / "here")
    assert Report.load(path) == made
    assert str(tmp_path) not in path.read_text()
    (tmp_path / "here").rename(tmp_path / "there")
    for one in Report.load(tmp_path / "there").evaluations:
        assert all(pair.edited.file.exists() for pair in one.examples)


def test_a_broken_report_is_refused_in_one_line(tmp_path):
    with pytest.raises(ExpungeError, match="can't read the report"):
        Report.load(tmp_path)
    path = report(tmp_path).save(tmp_path)
    path.write_text(path.read_text().replace('"successes": 21', '"successes": 22'))
    with pytest.raises(ExpungeError, match=r"not a whole report.*22 successes in 21"):
        Report.load(path)
    path.write_text("{")
    with pytest.raises(ExpungeError, match="not a whole report"):
        Report.load(path)


def test_the_protocol_has_an_id_that_changes_with_it(tmp_path):
    protocol = evaluation(SANTA, tmp_path).protocol
    other = protocol.model_copy(update={"sampler": {**protocol.sampler, "steps": 21}})
    assert protocol.id != other.id
    assert protocol.id == type(protocol).model_validate_json(protocol.model_dump_json()).id
