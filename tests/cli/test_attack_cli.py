"""``expunge attack``: the table, the files, the mistakes."""

from pathlib import Path

import pytest

from expunge import Concept, erase, load
from expunge.cli import main
from expunge.evaluation.red_team import RedTeam

QUICK = ("--budget", "1", "--pictures", "1", "--steps", "1", "--attack", "rows")


def test_the_base_and_the_edit_are_attacked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "edit.safetensors"
    erase(load("emoji"), Concept(target="ghost"), "negative-prompt").save(place)
    arguments = ["attack", "emoji", "--edit", str(place), *QUICK, "--output", str(tmp_path / "out")]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "comes back" in said
    assert "any of these" in said
    found = RedTeam.load(tmp_path / "out")
    assert [one.edit != "" for one in found.models] == [False, True]
    assert {one.concept for one in found.models} == {"ghost"}
    before = (tmp_path / "out" / "attacks.json").read_bytes()
    assert main(arguments) == 0
    assert (tmp_path / "out" / "attacks.json").read_bytes() == before


def test_what_was_found_is_tried_on_another_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "other.safetensors"
    erase(load("emoji"), Concept(target="ghost"), "negative-prompt").save(place)
    out = str(tmp_path / "out")
    arguments = ["--concept", "ghost", *QUICK[:-1], "closed-form", "--attack", "quantise"]
    assert main(["attack", "emoji", "--onto", str(place), *arguments, "--output", out]) == 0
    said = capsys.readouterr().out
    for words in ("tried on other models", "found on", "8 bits", "still right", "can't be tried"):
        assert words in said
    [found] = RedTeam.load(out).transfers
    assert found.models == ("base", str(place))
    assert len(found.crossings) == 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--concept", "ghost", "--attack", "row"], "did you mean rows"),
        (["--concept", "ghost", "--budget", "0"], "Must be >= 1"),
        (["--concept", "ghost", "--pictures", "0"], "Must be >= 1"),
        (["--concept", "phlogiston"], "never learned"),
        (["--concept", "ghost", "--edit", "missing.safetensors"], "missing.safetensors"),
        (["--concept", "ghost", "--onto", "missing.safetensors"], "missing.safetensors"),
        ([], "--concept WORDS"),
    ],
)
def test_mistakes_are_one_clear_line(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["attack", "emoji", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_attacks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attacks"]) == 0
    assert "end-to-end" in capsys.readouterr().out
