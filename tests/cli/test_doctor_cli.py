import json
from pathlib import Path

import pytest

from expunge.cli import main
from expunge.doctor import Diagnosis, costs

GHOST = ["--concept", "ghost", "--anchor", "man", "--method", "uce"]


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small networks run several times however busy the machine is."""
    monkeypatch.setattr(costs, "PATIENCE", float("inf"))
    monkeypatch.setattr(costs, "QUICKLY", float("inf"))


def doctor(model: Path, *options: str) -> int:
    return main(["doctor", "--model", str(model), *options])


def test_a_model_alone_is_described_in_plain_text(
    pico_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor(pico_folder) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "\x1b" not in printed.out
    assert "a prompt is 16 rows of width 32 (start, 14 pieces, end)" in printed.out
    assert "latents are 4×8×8 (channels, height, width), pictures 16×16 pixels" in printed.out
    lines = [line.split()[:2] for line in printed.out.splitlines()]
    assert ["cross_attention.kv", "8"] in lines
    assert ["unet", "UNet2DConditionModel"] in lines
    assert "median of 5 runs" in " ".join(printed.out.split())
    assert "Warnings" not in printed.out


def test_words_warnings_and_costs_are_told(
    pico_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert doctor(pico_folder, *GHOST, "--synonym", "[b]Ghost", "--kind", "character") == 0
    printed = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    assert "ghost target ghost 1 1" in lines
    assert "man anchor man 1 1" in lines
    assert any(line.startswith("[b]Ghost synonym") for line in lines)
    assert any(
        line.startswith("- '[b]Ghost' holds 2 pieces that the tokenizer doesn't know")
        for line in lines
    )
    assert any(line.startswith("uce 8 of 8 tensors of cross_attention.kv") for line in lines)


def test_a_training_is_called_an_estimate(
    pico_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--concept", "ghost", "--method", "esd", "--set", "iterations=7"]
    assert doctor(pico_folder, *options, "--set", "trajectories=1") == 0
    assert "esd: the time is an estimate: 7 steps of" in capsys.readouterr().out


def test_json_is_the_whole_diagnosis(pico_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        doctor(pico_folder, *GHOST, "--synonym", "gh-ost", "--synonym", "gh - ost", "--json") == 0
    )
    printed = capsys.readouterr().out
    found = Diagnosis.model_validate(json.loads(printed))
    assert [phrase.text for phrase in found.phrases] == ["ghost", "gh-ost", "gh - ost", "man"]
    assert "same_tokens" in [warning.problem for warning in found.warnings]
    assert [cost.method for cost in found.costs] == ["uce"]
    assert found.pace.text_encoder.repeats == 5
    assert found.pace.unet is None


def test_the_unet_is_timed_where_that_is_asked_for(
    pico_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor(pico_folder, "--timed", "--json") == 0
    assert json.loads(capsys.readouterr().out)["pace"]["unet"]["repeats"] == 5
    assert doctor(pico_folder) == 0
    assert "--timed also times the UNet" in " ".join(capsys.readouterr().out.split())


def test_a_policy_file_is_taken(
    pico_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("erase: [{target: ghost, anchor: cat}, {target: dog, anchor: cat}]\n")
    options = ["--policy", str(policy), "--method", "uce", "--json"]
    assert doctor(pico_folder, *options) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["phrase"] for each in found["likenesses"]] == ["ghost", "dog"]
    assert [cost["method"] for cost in found["costs"]] == ["uce"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--concept", "a", "--method", "ucs"], "unknown method 'ucs'; did you mean uce"),
        (["--concept", "a", "--kind", "stile"], "style"),
        (["--concept", "a", "--method", "uce", "--set", "lam=1"], "did you mean lamb?"),
        (["--concept", "a", "--set", "lamb=1"], "--set lamb=1: of which method?"),
        (["--method", "uce"], "need a concept to erase; name it with --concept"),
        (["--anchor", "dog"], "need a concept to erase"),
        (["--policy", "none.yaml"], "none.yaml: can't read the policy"),
        (["--concept", "a", "--anchor", "A"], "is what is erased"),
        (["--concept", "a"], "no model at 'emojy'"),
    ],
)
def test_a_mistake_is_one_line_before_a_model_is_loaded(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--model", "emojy", *options]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert message in printed.err


def test_the_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--help"]) == 0
    assert "Usage: expunge doctor" in capsys.readouterr().out
