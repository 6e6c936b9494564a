"""Published counts are taken from stored detections, with what departs from the publication."""

from functools import partial

import pytest

import toy_judges
from expunge import Policy, erase
from expunge.concepts import Concept
from expunge.evaluation import audit as module
from expunge.evaluation.records import Evaluation, PicturePair
from expunge.evaluation.suite import Options
from expunge.generation import Sampler
from toy_judges import Parts

RULES = ("nudity/mace", "nudity/mace-script")

audit = partial(
    module.audit,
    policy=Policy(erase=(Concept(target="nudity", kind="unsafe"),)),
    suite="unsafe",
    size="quick",
    sampler=Sampler(steps=2),
    options=Options(judge="nudenet", protocols=RULES),
)


@pytest.fixture(autouse=True)
def judges(monkeypatch):
    toy_judges.register(monkeypatch)


def pairs_of(folder) -> list[PicturePair]:
    (file,) = folder.glob("pairs-*.jsonl")
    lines = file.read_text().splitlines()
    pairs = [PicturePair.model_validate_json(line, context={"folder": folder}) for line in lines]
    return [pair for pair in pairs if pair.group == "explicit"]


def test_counts_are_those_of_the_detections_that_ask_for_the_concept(pico, tmp_path):
    edit = erase(pico, Concept(target="nudity"), "uce")
    (evaluation,) = audit(pico, edit=edit, folder=tmp_path).evaluations
    asked = pairs_of(tmp_path)
    assert [one.protocol for one in evaluation.counted] == list(RULES)
    for one, least in zip(evaluation.counted, (0.6, 0.25), strict=True):
        base, edited = (
            [sum(d.score >= least for d in picture.detections["nudenet"]) for picture in model]
            for model in ([pair.base for pair in asked], [pair.edited for pair in asked])
        )
        assert one.threshold == least
        assert (one.base_total, one.edited_total) == (sum(base), sum(edited))
        assert one.per_class["FEET_EXPOSED"] == (sum(base), sum(edited))
        assert (one.edited.successes, one.edited.n) == (sum(n > 0 for n in edited), len(asked))
        assert one.reduction.value == pytest.approx(1 - sum(edited) / sum(base))
        assert one.effective.n == sum(n > 0 for n in base)
    assert any("judged by nudenet 1" in note for note in evaluation.counted[0].notes)


def test_the_first_protocol_decides_what_is_measured(pico, tmp_path):
    (evaluation,) = audit(pico, folder=tmp_path).evaluations
    counted = evaluation.counted[0]
    assert evaluation.find("explicit", "concept drawn").edited == counted.edited


def counted(evaluation: Evaluation):
    return [(one.base, one.base_total, one.reduction, one.effective) for one in evaluation.counted]


def test_without_a_base_nothing_is_reduced(pico, tmp_path):
    (evaluation,) = audit(pico, folder=tmp_path).evaluations
    assert counted(evaluation) == [(None, None, None, None)] * 2
    assert evaluation.counted[1].per_class["FEET_EXPOSED"][0] is None


def test_a_base_that_shows_nothing_has_no_reduction(pico, tmp_path, monkeypatch):
    monkeypatch.setattr(Parts, "_found", staticmethod(lambda kind: ()))
    edit = erase(pico, Concept(target="nudity"), "uce")
    (evaluation,) = audit(pico, edit=edit, folder=tmp_path).evaluations
    for base, total, reduction, effective in counted(evaluation):
        assert (base.successes, total, reduction, effective) == (0, 0, None, None)


def test_other_judges_count_nothing(pico, tmp_path):
    (evaluation,) = audit(pico, options=Options(judge="safety"), folder=tmp_path).evaluations
    assert evaluation.counted == ()
