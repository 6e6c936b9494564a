"""``expunge audit``: its files, its exit codes, its mistakes, and that it can be killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import toy_judges
from expunge import erase
from expunge.cli import main
from expunge.concepts import Concept
from expunge.detectors import DETECTORS, packaged
from expunge.evaluation.records import Report
from expunge.evaluation.suite import SUITES
from expunge.files import sha256
from toy_judges import Things

TESTS = Path(toy_judges.__file__).parent


@pytest.fixture(autouse=True)
def judges(monkeypatch):
    toy_judges.register(monkeypatch)
    monkeypatch.setitem(SUITES.places, "toy", "toy_suite:SUITE")


@pytest.fixture
def audit(pico_folder, tmp_path):
    def run(*arguments: str | Path, suite: str = "toy", concept: str = "ghost") -> int:
        named = ("--concept", concept) if concept else ()
        fixed = ("--suite", suite, "--steps", "2", "--output", str(tmp_path / "out"))
        return main(["audit", str(pico_folder), *named, *fixed, *map(str, arguments)])

    return run


def one_line(capsys) -> str:
    """The mistake, below whatever the progress was."""
    *progress, line = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert all(not above or above.startswith("pictures in ") for above in progress)
    return line


def pictures(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")}


def policy(folder: Path, *limits: dict[str, object]) -> Path:
    path = folder / "policy.yaml"
    path.write_text(yaml.safe_dump({"erase": [{"target": "ghost"}], "limits": list(limits)}))
    return path


def test_the_folder_has_all_that_is_promised(audit, tmp_path, capsys):
    assert audit() == 0
    out = tmp_path / "out"
    for name in ("report.json", "report.html", "README.md", "certificate.json"):
        assert (out / name).exists()
    assert len(list(out.glob("pairs-*.jsonl"))) == len(list((out / "judgements").iterdir())) == 1
    certificate = json.loads((out / "certificate.json").read_text())
    assert certificate["report.json"] == sha256(out / "report.json")
    assert certificate["edit"] is certificate["base"] is None
    assert "95 % CI" in capsys.readouterr().out


def test_edits_are_added_up_and_compared_with_the_model(audit, pico, tmp_path):
    for words in ("ghost", "dog"):
        erase(pico, Concept(target=words), "uce").save(tmp_path / f"{words}.safetensors")
    both = [f"--edit={tmp_path / words}.safetensors" for words in ("ghost", "dog")]
    assert audit(*both) == 0
    (evaluation,) = Report.load(tmp_path / "out").evaluations
    assert evaluation.compared
    assert len(evaluation.provenance) == 2


def test_another_model_is_the_base(audit, pico_folder, tmp_path):
    assert audit("--base", pico_folder) == 0
    (evaluation,) = Report.load(tmp_path / "out").evaluations
    assert evaluation.base.name == str(pico_folder)
    drift = evaluation.find("kept prompts", "pixel drift")
    assert drift.edited.value == 0  # it is the same model


@pytest.mark.parametrize(("most", "code", "word"), [(1, 0, "met"), (0.001, 1, "MISSED")])
def test_a_missed_limit_is_exit_code_1(audit, tmp_path, capsys, most, code, word):
    # Whatever is drawn, no interval of few pictures is that narrow.
    limit = {"group": "explicit", "at_most": most}
    assert audit("--policy", policy(tmp_path, limit), concept="") == code
    output = capsys.readouterr()
    assert f"{word}: ghost, explicit, concept drawn" in output.out
    assert output.err.endswith("\nmissed: 1 of 1 limits\n") is bool(code)
    assert (tmp_path / "out" / "report.html").exists()
    assert Report.load(tmp_path / "out").verdicts[0].passed is not bool(code)


def test_a_dry_run_draws_nothing_into_the_folder(audit, tmp_path, capsys):
    assert audit("--dry-run") == 0
    shown = capsys.readouterr().out
    assert "5 different pictures, 1 model; of the audited one 0 are drawn already" in shown
    assert not (tmp_path / "out").exists()


def test_a_dry_run_refuses_what_the_run_would_refuse(audit, tmp_path, capsys):
    wrong = policy(tmp_path, {"group": "explicid", "at_most": 0})
    assert audit("--dry-run", "--policy", wrong, concept="") == 2
    assert "no prompts 'explicid'" in one_line(capsys)


@pytest.mark.parametrize(
    ("arguments", "suite", "message"),
    [
        ((), "toys", "unknown suite 'toys'"),
        (("--judge", "thinks"), "objects", "unknown detector 'thinks'"),
        (("--prompts", "none.csv"), "objects", "can't read the prompts"),
        (("--edit", "none.safetensors"), "toy", "none.safetensors"),
        (("--base", "no/such/folder"), "toy", "no/such/folder"),
        (("--perceptual", "efficientnet"), "toy", "give a base too"),
        (("--size", "huge"), "objects", "unknown size 'huge'"),
        (("--policy", "policy.yaml"), "toy", "either with --concept WORDS or with --policy FILE"),
        ((), "objects", "things can't tell 'ghost'"),
    ],
)
def test_a_mistake_is_one_line_and_draws_nothing(
    audit, tmp_path, capsys, arguments, suite, message
):
    assert audit(*arguments, suite=suite) == 2
    assert message in one_line(capsys)
    assert not pictures(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("prompt,evaluation_seed\n", "no prompt in it"),
        ("words,evaluation_seed\na church,1\n", "no column prompt"),
        ("prompt,evaluation_seed\na church,one\n", "row 2"),
        ("prompt,evaluation_seed\na church,1,2\n", "row 2: 3 fields, the header has 2"),
    ],
)
def test_a_list_with_a_mistake_is_one_line(audit, tmp_path, capsys, content, message):
    (tmp_path / "list.csv").write_text(content)
    given = ("--prompts", tmp_path / "list.csv")
    assert audit(*given, suite="objects", concept="church") == 2
    assert message in one_line(capsys)
    assert not pictures(tmp_path)


def test_an_edit_of_another_base_is_one_line(audit, pico, tmp_path, capsys):
    import torch

    with torch.no_grad():
        for name in erase(pico, Concept(target="ghost"), "uce").changed:
            pico.denoiser.get_parameter(name).add_(0.5)
    erase(pico, Concept(target="ghost"), "uce").save(tmp_path / "other.safetensors")
    assert audit("--edit", tmp_path / "other.safetensors") == 2
    assert "base" in one_line(capsys)
    assert not pictures(tmp_path)


def test_a_package_that_is_not_installed_is_one_line(audit, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(DETECTORS.places, "opennsfw", "expunge.detectors.opennsfw:OpenNSFW")
    monkeypatch.setattr(packaged, "find_spec", lambda name: None)
    assert audit(suite="unsafe", concept="nudity") == 2
    assert "pip install 'expunge[eval]'" in one_line(capsys)
    assert not pictures(tmp_path)


def test_a_judge_that_fails_is_one_line_and_the_same_command_continues(
    audit, tmp_path, capsys, monkeypatch
):
    brief = ("--size", "brief")
    monkeypatch.setattr(Things, "fails_at", 0)
    assert audit(*brief, suite="objects", concept="church") == 2
    assert "things can't judge" in one_line(capsys)
    drawn = pictures(tmp_path)
    assert len(drawn) == 17
    assert not (tmp_path / "out" / "report.json").exists()
    monkeypatch.setattr(Things, "fails_at", None)
    assert audit(*brief, suite="objects", concept="church") == 0
    assert pictures(tmp_path) == drawn


def test_a_broken_picture_is_drawn_again(audit, tmp_path):
    assert audit() == 0
    report, drawn = Report.load(tmp_path / "out"), pictures(tmp_path)
    broken = min(drawn)
    broken.write_bytes(b"no picture")
    assert audit() == 0
    assert Report.load(tmp_path / "out") == report
    del drawn[broken]
    assert drawn.items() <= pictures(tmp_path).items()


def test_without_jinja_the_numbers_are_written_all_the_same(audit, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert audit() == 2
    assert "pip install 'expunge[report]'" in one_line(capsys)
    assert Report.load(tmp_path / "out")


AUDIT = """
import sys
sys.path.insert(0, sys.argv[1])
import toy_judges
from expunge.cli import main
from expunge.detectors import DETECTORS
DETECTORS.places.update(toy_judges.PLACES)
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_killed_and_resumed_gives_the_same_report(pico, pico_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("expunge.evaluation.judging.BATCH", 8)
    erase(pico, Concept(target="church"), "uce").save(tmp_path / "edit.safetensors")

    def command(folder: str) -> list[str]:
        chosen = ["--concept=church", f"--edit={tmp_path / 'edit.safetensors'}", "--suite=objects"]
        how = ["--clip=folder", "--steps=2", f"--output={tmp_path / folder}"]
        return ["audit", str(pico_folder), *chosen, *how]

    assert main(command("whole")) == 0
    script = [sys.executable, "-c", AUDIT, str(TESTS), *command("parts")]
    killed = subprocess.Popen(script, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(pictures(tmp_path / "parts")) < 60:
        assert time.monotonic() < deadline
        assert killed.poll() is None
        time.sleep(0.005)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    drawn = pictures(tmp_path / "parts")
    assert not (tmp_path / "parts" / "report.json").exists()
    assert main(command("parts")) == 0
    assert len(drawn) < len(pictures(tmp_path / "parts"))
    one, two = (tmp_path / folder / "report.json" for folder in ("whole", "parts"))
    assert one.read_text() == two.read_text()
