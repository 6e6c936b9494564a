"""Every picture is judged once; rules, stops and overlaps change no number and lose nothing."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import toy_judges
from expunge import Policy, erase
from expunge.concepts import Concept
from expunge.errors import ExpungeError
from expunge.evaluation import audit as module
from expunge.evaluation.judging import Judgements, Watch, feature_drift, pixel_drift
from expunge.evaluation.records import Report
from expunge.evaluation.suite import Judgement, Options
from expunge.generation import ImageRecord, ImageRequest, Sampler
from toy_judges import Parts

NUDITY = Concept(target="nudity", kind="unsafe")
PICTURES = 2 + 10  # of the size "brief"

audit = partial(
    module.audit,
    policy=Policy(erase=(NUDITY,)),
    suite="unsafe",
    size="brief",
    sampler=Sampler(steps=2),
)


@pytest.fixture(autouse=True)
def judges(monkeypatch):
    toy_judges.register(monkeypatch)


def by(*rules: str) -> Options:
    return Options(judge="nudenet", protocols=rules)


MACE = by("nudity/mace")


def pictures(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")}


def stored(folder: Path) -> Path:
    (file,) = (folder / "judgements").iterdir()
    return file


def test_every_picture_is_judged_once(pico, tmp_path):
    first = audit(pico, options=MACE, folder=tmp_path)
    assert Parts.seen == len(pictures(tmp_path)) == PICTURES
    assert audit(pico, options=MACE, folder=tmp_path) == first
    assert Parts.seen == PICTURES


def test_another_protocol_needs_no_picture_and_no_look(pico, tmp_path):
    audit(pico, options=MACE, folder=tmp_path)
    drawn = pictures(tmp_path)
    looser = audit(pico, options=by("nudity/mace-script", "nudity/cpe"), folder=tmp_path)
    assert Parts.seen == PICTURES
    assert pictures(tmp_path) == drawn
    (evaluation,) = looser.evaluations
    assert [one.protocol for one in evaluation.counted] == ["nudity/mace-script", "nudity/cpe"]
    assert "nudity/mace-script" in evaluation.protocol.decision
    fresh = audit(
        pico, options=by("nudity/mace-script", "nudity/cpe"), folder=tmp_path / "again"
    ).evaluations[0]
    assert fresh.measurements == evaluation.measurements
    assert fresh.counted == evaluation.counted


def test_another_judge_needs_no_picture(pico, tmp_path):
    audit(pico, options=MACE, folder=tmp_path)
    drawn = pictures(tmp_path)
    audit(pico, options=Options(judge="safety"), folder=tmp_path)
    assert pictures(tmp_path) == drawn
    assert toy_judges.Safety.seen == PICTURES
    assert len(list((tmp_path / "judgements").iterdir())) == 2


@pytest.mark.parametrize("cut", [1, 100])
def test_a_line_that_a_kill_has_cut_is_judged_again_and_only_once(pico, tmp_path, cut):
    whole = audit(pico, options=MACE, folder=tmp_path)
    file = stored(tmp_path)
    *kept, last = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(kept) + last[:-cut])
    for _ in range(2):
        assert audit(pico, options=MACE, folder=tmp_path) == whole
        assert Parts.seen == PICTURES + 1
        assert file.read_bytes() == b"".join([*kept, last])


def test_judgements_are_in_one_order_whoever_has_judged_first(pico, tmp_path):
    audit(pico, options=MACE, folder=tmp_path)
    whole = stored(tmp_path).read_bytes()
    lines = whole.splitlines(keepends=True)
    stored(tmp_path).write_bytes(b"".join(lines[:1:-1]) + lines[1][:50])
    audit(pico, options=MACE, folder=tmp_path)
    assert stored(tmp_path).read_bytes() == whole


def test_two_programs_that_judge_keep_each_others_judgements(tmp_path, monkeypatch):
    monkeypatch.setattr("expunge.evaluation.judging.BATCH", 1)
    record(tmp_path, "tree.png")
    one, two = Judgements(_Slow(), tmp_path), Judgements(_Slow(), tmp_path)
    tree = [Image.open(tmp_path / "tree.png")]
    one.add([("a", "x")], tree, tmp_path)
    two.add([("b", "x")], tree, tmp_path)
    one.add([("c", "x")], tree, tmp_path)
    for judgements in (one, two):
        judgements.settle()
        two.add([("d", "x")], tree, tmp_path)
    known = stored(tmp_path).read_text().splitlines()
    assert [json.loads(line)["picture"] for line in known] == ["a", "b", "c", "d", "d"]


@pytest.mark.parametrize("fails_at", [0, PICTURES - 3])
def test_a_detector_that_fails_stops_the_audit_which_then_continues(
    pico, tmp_path, monkeypatch, fails_at
):
    monkeypatch.setattr("expunge.evaluation.judging.BATCH", 4)
    monkeypatch.setattr(Parts, "fails_at", fails_at)
    with pytest.raises(ExpungeError, match="nudenet can't judge picture"):
        audit(pico, options=MACE, folder=tmp_path)
    drawn = pictures(tmp_path)
    assert drawn
    assert not (tmp_path / "report.json").exists()
    monkeypatch.setattr(Parts, "fails_at", None)
    report = audit(pico, options=MACE, folder=tmp_path)
    assert drawn.items() <= pictures(tmp_path).items()
    whole = audit(pico, options=MACE, folder=tmp_path / "whole")
    assert report.evaluations[0].measurements == whole.evaluations[0].measurements


def test_judging_beside_drawing_gives_what_judging_afterwards_gives(pico, tmp_path, monkeypatch):
    edit = erase(pico, Concept(target="nudity"), "uce")
    beside = audit(pico, options=MACE, edit=edit, folder=tmp_path / "beside")
    monkeypatch.setattr(Watch, "__call__", lambda *_: None)
    afterwards = audit(pico, options=MACE, edit=edit, folder=tmp_path / "afterwards")
    assert beside.model_dump(mode="json", context={"folder": tmp_path / "beside"}) == (
        afterwards.model_dump(mode="json", context={"folder": tmp_path / "afterwards"})
    )


def test_a_judgement_does_not_depend_on_what_it_comes_with(pico, tmp_path, monkeypatch):
    features = Parts.features
    monkeypatch.setattr(Parts, "features", lambda self, seen: features(self, seen) + len(seen))
    whole = audit(pico, options=MACE, folder=tmp_path)
    before = stored(tmp_path).read_text().splitlines(keepends=True)
    stored(tmp_path).write_text("".join(before[::3]))
    assert audit(pico, options=MACE, folder=tmp_path) == whole
    assert set(stored(tmp_path).read_text().splitlines(keepends=True)) == set(before)


def test_what_waits_for_a_judge_is_left_when_something_fails(tmp_path, monkeypatch):
    """Or whoever stops a run would wait for a slow judge to end its whole queue."""
    monkeypatch.setattr("expunge.evaluation.judging.BATCH", 1)
    judgements, tree = Judgements(_Slow(), tmp_path), record(tmp_path, "tree.png")

    def draw():
        with judgements.beside_drawing() as watch:
            for _ in range(50):
                watch(tree, tmp_path)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw()
    assert judgements.judge.asked < 5


class _Slow:
    name, sha256, asked = "slow", "0" * 64, 0

    def judge(self, pictures, prompts):
        self.asked += 1
        time.sleep(0.05)
        return [Judgement(labels={}, confidences={})]

    def features(self, pictures):
        return torch.ones(1, 2)


def record(folder: Path, name: str, content: bytes = b"") -> ImageRecord:
    if content:
        (folder / name).write_bytes(content)
    else:
        Image.new("RGB", (4, 4)).save(folder / name)
    request = ImageRequest(case_number="a", prompt="a tree", seed=0)
    return ImageRecord(file=name, sha256="0" * 64, request=request)


def test_a_judge_that_leaves_out_a_picture_or_a_feature_stops_the_audit(
    pico, tmp_path, monkeypatch
):
    features = Parts.features
    for broken in (lambda *seen: features(*seen)[1:], lambda *seen: features(*seen) * torch.nan):
        monkeypatch.setattr(Parts, "features", broken)
        with pytest.raises(ExpungeError, match="nudenet didn't judge every picture"):
            audit(pico, options=MACE, folder=tmp_path)


def test_a_broken_picture_is_drawn_again(pico, tmp_path):
    report = audit(pico, options=MACE, folder=tmp_path)
    file = next(iter(pictures(tmp_path)))
    content = file.read_bytes()
    file.write_bytes(content[:50])
    assert audit(pico, options=MACE, folder=tmp_path) == report
    assert file.read_bytes() == content
    assert Parts.seen == PICTURES


def test_a_picture_that_breaks_before_it_is_judged_is_named(tmp_path):
    with ThreadPoolExecutor(1) as thread:
        watch = Watch(Judgements(_Slow(), tmp_path), thread)
        watch(record(tmp_path, "broken.png", b"no picture"), tmp_path)
        with pytest.raises(ExpungeError, match="no readable picture"):
            watch.end()


def test_a_row_with_its_own_settings_is_drawn_with_them(pico, tmp_path):
    rows = "prompt,sd_seed,guidance,width,height\na tree,7,1.5,32,16\na tree,8,,,\na lake,9,,,\n"
    (tmp_path / "list.csv").write_text(rows)
    given = Options(judge="nudenet", captions=str(tmp_path / "list.csv"))
    (evaluation,) = audit(pico, options=given, folder=tmp_path).evaluations
    scenes = [pair for pair in evaluation.examples if pair.group == "everyday scenes"]
    assert {Image.open(pair.edited.file).size for pair in scenes} == {(32, 16), (16, 16)}
    assert {pair.seed for pair in scenes} <= {7, 8, 9}


def test_one_prompt_and_seed_with_two_settings_is_refused(pico, tmp_path):
    (tmp_path / "list.csv").write_text("prompt,sd_seed,guidance\na tree,7,1.5\na tree,7,2.5\n")
    given = Options(judge="nudenet", captions=str(tmp_path / "list.csv"))
    with pytest.raises(ExpungeError, match="'a tree' with seed 7 is asked for twice"):
        audit(pico, options=given, folder=tmp_path)
    assert not pictures(tmp_path)


def test_the_saved_report_reads_back(pico, tmp_path):
    report = audit(pico, options=MACE, folder=tmp_path)
    assert Report.load(tmp_path) == report


def test_drift_is_0_for_equals_and_grows():
    rows = torch.eye(3)
    assert feature_drift(rows, rows) == [0, 0, 0]
    assert feature_drift(rows, -rows) == [2, 2, 2]
    assert feature_drift(rows, rows.roll(1, 0)) == [1, 1, 1]
    black, white = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)
    assert pixel_drift(black, black) == 0
    assert pixel_drift(black, white) == pixel_drift(white, black) == 1
