"""The evaluation draws once, judges everything, and stops where something is missing."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest

import toy_suite
from expunge import Concept, erase
from expunge.cli import main
from expunge.errors import ExpungeError
from expunge.evaluation import evaluate as module
from expunge.evaluation.records import PicturePair, Report
from expunge.generation import Sampler
from expunge.registry import Registry

evaluate = partial(module.evaluate, sampler=Sampler(steps=2))


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setattr(module, "SUITES", Registry("suite", {"toy": "toy_suite:SUITE"}))


@pytest.fixture
def edit(pico):
    return erase(pico, Concept(target="santa claus", kind="character"), "uce")


def pictures(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")}


def test_both_models_are_drawn_on_the_same_seeds_and_the_model_is_left_as_it_was(
    pico, edit, tmp_path
):
    before = {name: value.clone() for name, value in pico.denoiser.state_dict().items()}
    (evaluation,) = evaluate(pico, edit, suite="toy", seeds=(0, 1), folder=tmp_path).evaluations
    assert all((before[name] == value).all() for name, value in pico.denoiser.state_dict().items())
    assert len(pictures(tmp_path)) == 2 * 5 * 2
    assert {row.edited.n for row in evaluation.measurements} == {4, 6}
    assert evaluation.protocol.sampler["steps"] == 2
    lines = (tmp_path / f"pairs-{edit.id}-dark.jsonl").read_text().splitlines()
    assert len(lines) == 5 * 2
    assert {json.loads(line)["seed"] for line in lines} == {
        shot.seed for shot in evaluation.protocol.plan.shots
    }


def test_nothing_is_drawn_twice(pico, edit, tmp_path):
    first = evaluate(pico, edit, suite="toy", folder=tmp_path)
    drawn = pictures(tmp_path)
    assert evaluate(pico, edit, suite="toy", folder=tmp_path) == first
    assert pictures(tmp_path) == drawn
    other = erase(pico, Concept(target="santa claus", synonyms=("ghost",)), "uce")
    evaluate(pico, other, suite="toy", folder=tmp_path)
    assert drawn.items() <= pictures(tmp_path).items()
    assert len(pictures(tmp_path)) == 5 * 3


def test_the_model_is_read_once_for_its_fingerprint(pico, tmp_path, monkeypatch):
    edit = erase(pico, Concept(target="santa claus"), "uce") + erase(
        pico, Concept(target="ghost"), "uce"
    )
    fingerprint, whole = type(pico).fingerprint, []

    def counted(model, names=None):
        whole.extend([model] if names is None else [])
        return fingerprint(model, names)

    monkeypatch.setattr(type(pico), "fingerprint", counted)
    assert len(evaluate(pico, edit, suite="toy", folder=tmp_path).evaluations) == 2
    assert whole == [pico]


def test_a_stopped_evaluation_ends_as_one_that_was_not(pico, edit, tmp_path):
    whole = evaluate(pico, edit, suite="toy", folder=tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    for path in list((tmp_path / "stopped").rglob("*.png"))[::2]:
        path.unlink()
    resumed = evaluate(pico, edit, suite="toy", folder=tmp_path / "stopped")
    assert resumed.evaluations[0].measurements == whole.evaluations[0].measurements


def test_the_saved_report_reads_back(pico, edit, tmp_path):
    report = evaluate(pico, edit, suite="toy", folder=tmp_path)
    assert Report.load(tmp_path) == report


def test_an_edited_model_is_no_base(pico, edit, tmp_path):
    with edit.applied(pico), pytest.raises(ExpungeError, match="revert it"):
        evaluate(pico, edit, suite="toy", folder=tmp_path)


def test_a_judge_that_fails_stops_the_evaluation(pico, edit, tmp_path, monkeypatch):
    monkeypatch.setattr(toy_suite.Brightness, "score", float("nan"))
    with pytest.raises(ExpungeError, match="brightness failed"):
        evaluate(pico, edit, suite="toy", folder=tmp_path)
    assert not (tmp_path / "report.json").exists()


def test_a_judge_that_skips_a_picture_stops_the_evaluation(pico, edit, tmp_path, monkeypatch):
    judge = toy_suite.Brightness.judge
    monkeypatch.setattr(toy_suite.Brightness, "judge", lambda *seen: judge(*seen)[1:])
    with pytest.raises(ExpungeError, match="didn't judge every picture"):
        evaluate(pico, edit, suite="toy", folder=tmp_path)


def test_a_picture_that_vanished_stops_the_evaluation(pico, edit, tmp_path, monkeypatch):
    draw = module.draw

    def losing(*arguments, **options):
        files = draw(*arguments, **options)
        next(files.folder.glob("*.png")).unlink()
        return files

    monkeypatch.setattr(module, "draw", losing)
    with pytest.raises(ExpungeError, match="no readable picture"):
        evaluate(pico, edit, suite="toy", folder=tmp_path)


def test_a_judge_of_other_pictures_is_refused_before_one_is_drawn(
    pico, edit, tmp_path, monkeypatch
):
    monkeypatch.setattr(toy_suite.Brightness, "size", (64, 64))
    with pytest.raises(ExpungeError, match=r"64×64 pictures.*16×16"):
        evaluate(pico, edit, suite="toy", folder=tmp_path)
    assert not pictures(tmp_path)


def test_an_unknown_suite_is_named(pico, edit, tmp_path):
    with pytest.raises(ExpungeError, match="unknown suite 'toys'; did you mean toy"):
        evaluate(pico, edit, suite="toys", folder=tmp_path)


def test_every_judgement_can_be_scored_again(pico, edit, tmp_path):
    from expunge.evaluation.scoring import right_of

    report = evaluate(pico, edit, suite="toy", folder=tmp_path)
    lines = (tmp_path / f"pairs-{edit.id}-dark.jsonl").read_text().splitlines()
    pairs = [PicturePair.model_validate_json(line, context={"folder": tmp_path}) for line in lines]
    others = [pair for pair in pairs if pair.group == "others"]
    right = sum(pair.edited.labels == pair.prompt.expected for pair in others)
    stated = report.evaluations[0].find("others", right_of("light")).edited
    assert (stated.successes, stated.n) == (right, len(others))
    assert all(pair.edited.file.exists() for pair in pairs)


def test_the_command_measures_several_edits_in_one_report(
    pico, pico_folder, edit, tmp_path, capsys
):
    other = erase(pico, Concept(target="ghost"), "uce")
    for one, name in ((edit, "santa"), (other, "ghost")):
        one.save(tmp_path / f"{name}.safetensors")
    chosen = [f"--edit={tmp_path / name}.safetensors" for name in ("santa", "ghost")]
    options = [f"--model={pico_folder}", "--suite=toy", f"--output={tmp_path}", "--steps=2"]
    assert main(["evaluate", *chosen, *options]) == 0
    shown = capsys.readouterr().out
    assert "95 % CI" in shown
    assert "Others: the light was right" in shown
    assert [e.edit for e in Report.load(tmp_path).evaluations] == [edit.id, other.id]


def test_mistakes_on_the_command_line_are_one_line(tmp_path, capsys):
    for arguments in (["evaluate"], ["evaluate", "--edit", str(tmp_path / "none.safetensors")]):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
