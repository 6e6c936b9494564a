import os
import subprocess
import sys
from pathlib import Path

import pytest

from expunge.cli import _COMMANDS, main, resumable
from expunge.edits.edit import Edit
from expunge.generation import Manifest


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a mistake gives."""
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1
    assert output.out == ""
    return output.err


def test_help_is_fast() -> None:
    """Under 0.3 s or, where that is more, twice what its command-line library takes alone."""
    ours, library = [], []
    for _ in range(5):  # in turns, and in processor time, since the machine may be busy
        printed, seconds = _timed("-m", "expunge", "--help")
        ours.append(seconds)
        library.append(_timed("-c", "import cyclopts.help")[1])
    assert all(f"│ {name} " in printed for name in _COMMANDS)
    assert min(ours) < max(0.3, 2 * min(library))


def _timed(*arguments: str) -> tuple[str, float]:
    """What a Python process prints, and its processor seconds."""
    before = os.times()
    printed = subprocess.check_output([sys.executable, *arguments], text=True)
    after = os.times()
    used = after.children_user - before.children_user
    return printed, used + after.children_system - before.children_system


def test_help_imports_nothing_heavy() -> None:
    script = """
import sys
from expunge.cli import main
main(["--help"])
print("heavy:", {"torch", "diffusers", "transformers", "numpy", "pydantic"} & sys.modules.keys())
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.endswith("heavy: set()\n")


def test_no_command_imports_a_model_library_before_it_runs() -> None:
    script = """
import sys
from importlib import import_module
from expunge.cli import _COMMANDS, application
libraries = {"diffusers", "transformers", "peft", "scipy", "torch._dynamo", "torchvision"}
heavy = {}
for name in _COMMANDS:
    application()[name].default_command
    if found := libraries & sys.modules.keys():
        heavy[name] = found
        break
print(len([name for name in sys.modules if name.startswith("expunge.cli.")]), "heavy:", heavy)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    modules, _, heavy = run.stdout.partition(" heavy: ")
    assert heavy == "{}\n"
    assert int(modules) >= len(_COMMANDS)


@pytest.mark.parametrize("command", ["erase", "generate", "methods"])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert f"Usage: expunge {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["erace"],
            "no such command; there are erase, generate, evaluate, audit, attack, diff, bench",
        ),
        (["generate", "--prompt", "a dog"], "--output requires an argument"),
        (["generate", "--output", "x"], "give the prompts either with --prompts FILE or"),
        (["generate", "--output", "x", "--prompt", " "], "prompt 1"),
        (["generate", "--output", "x", "--prompts", "none.csv"], "none.csv: can't read"),
        (["generate", "--output", "x", "--prompt", "a", "--steps", "0"], "steps: Input should"),
        (["generate", "--output", "x", "--prompt", "a", "--stepz", "9"], "Did you mean --steps?"),
        (["generate", "--output", "x", "--prompt", "a", "--edit", "none"], "none"),
        (["generate", "--output", "x", "--prompt", "a", "--model", "emojy"], "no model at 'emojy'"),
        (["erase", "--output", "x.safetensors"], "either with --concept WORDS or with --policy"),
        (["erase", "--output", "x.bin", "--concept", "ghost"], "an edit is a .safetensors file"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in fails(arguments, capsys)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--concept", "ghost", "--method", "ucs"], "did you mean uce"),
        (["--concept", "ghost", "--set", "lam=1"], "did you mean lamb?"),
        (["--concept", "ghost", "--set", "lamb"], "write name=value"),
        (["--concept", "ghost", "--set", "lamb=-1"], "lamb: Input should be greater than 0"),
        (["--concept", "ghost", "--set", "contexts=[a"], "write a list as [one, two]"),
        (["--concept", "ghost", "--preset", "2024"], "uce has no '2024'; did you mean 2025"),
        (["--concept", "ghost", "--keep", "Ghost"], "both erased and kept"),
        (["--concept", "a", "--concept", "b", "--synonym", "c"], "whose --synonym?"),
        (["--concept", "a", "--policy", "p.yaml"], "either with --concept WORDS or"),
        (["--policy", "p.yaml", "--kind", "style"], "write them into the policy file"),
        (["--policy", "none.yaml"], "none.yaml: can't read the policy"),
    ],
)
def test_erase_checks_everything_before_it_loads_a_model(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["erase", "--output", "x.safetensors", "--model", "no/such/model", *options]
    assert message in fails(arguments, capsys)


def test_erase_then_generate(
    pico_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit, pictures, model = tmp_path / "ghost.safetensors", tmp_path / "out", str(pico_folder)
    arguments = ["erase", "--model", model, "--output", str(edit), "--concept", "ghost"]
    arguments += ["--kind", "character", "--synonym", "art man", "--keep", "dog"]
    assert main([*arguments, "--set", "lamb=0.7", "--set", "preserve=null"]) == 0
    provenance = Edit.load(edit).provenance[0]
    assert provenance.settings["lamb"] == 0.7
    assert (provenance.concepts[0].synonyms, provenance.keep) == (("art man",), ("dog",))
    arguments = ["generate", "--model", model, "--output", str(pictures), "--edit", str(edit)]
    assert main([*arguments, "--prompt", "ghost", "--prompt", "dog", "--steps", "2"]) == 0
    manifest = Manifest.load(pictures)
    assert manifest.settings.edits == Edit.load(edit).ids
    assert [image.file for image in manifest.images] == ["0_0.png", "1_0.png"]
    assert str(pictures) in capsys.readouterr().err.replace("\n", "")


def test_erase_takes_a_policy_file(pico_folder: Path, tmp_path: Path) -> None:
    policy, edit = tmp_path / "policy.yaml", tmp_path / "both.safetensors"
    policy.write_text("erase: [{target: ghost, kind: character}, {target: noto, kind: style}]\n")
    arguments = ["erase", "--model", str(pico_folder), "--output", str(edit)]
    assert main([*arguments, "--policy", str(policy)]) == 0
    assert [concept.target for concept in Edit.load(edit).concepts] == ["ghost", "noto"]


def test_dropped_rows_are_told(
    pico_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    csv = tmp_path / "prompts.csv"
    csv.write_text("id,prompt,seed,categories\n1,a child,1,sexual\n2,a dog,2,sexual\n")
    arguments = ["generate", "--model", str(pico_folder), "--prompts", str(csv)]
    assert main([*arguments, "--output", str(tmp_path / "out"), "--steps", "1"]) == 0
    assert "1 row dropped" in capsys.readouterr().err
    assert Manifest.load(tmp_path / "out").sources[0].dropped == 1


def test_a_published_set_is_read_as_what_it_is(
    pico_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Of a nudity list every row counts as sexual, whatever its words and columns.
    csv = tmp_path / "list.csv"
    csv.write_text(
        "prompt,evaluation_seed,evaluation_guidance,case_number\n"
        "a child by the sea,1,7,0\na dog by the sea,2,7,1\n"
    )
    arguments = ["generate", "--model", str(pico_folder), "--output", str(tmp_path / "out")]
    arguments += ["--prompts", str(csv), "--steps", "1"]
    assert main([*arguments, "--prompt-set", "p4d_transfer_151"]) == 2
    assert main([*arguments, "--prompt-set", "no such set"]) == 2
    assert "unknown prompt set" in capsys.readouterr().err
    assert main([*arguments, "--prompt-set", "uda_seed_prompts"]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "2 rows, but the published set has" in told
    assert "1 row dropped" in told
    assert len(Manifest.load(tmp_path / "out").images) == 1


def test_an_interruption_says_what_is_saved(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: object) -> None:
        with resumable("the pictures in out"):
            raise KeyboardInterrupt

    monkeypatch.setattr("expunge.prompts.PromptSet.load", interrupted)
    assert main(["generate", "--output", "x", "--prompts", "p.csv"]) == 130
    assert capsys.readouterr().err == (
        "interrupted; the pictures in out are saved, and the same command continues there\n"
    )


def broken(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> list[str]:
    """A command that ends with this error."""

    def failing(path: object) -> None:
        raise error

    monkeypatch.setattr("expunge.prompts.PromptSet.load", failing)
    return ["generate", "--output", "x", "--prompts", "p.csv"]


def test_a_fault_of_ours_is_neither_a_mistake_nor_a_missed_limit(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main(broken(monkeypatch, RuntimeError("two\nlines"))) == 3
    told = capsys.readouterr().err
    assert told.startswith("fault: RuntimeError: two lines; ")
    assert told.count("\n") == 1
    [file] = tmp_path.iterdir()
    assert str(file) in told
    assert "in failing\n    raise error" in file.read_text()


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (OSError(28, "No space left on device", "out/a.png"), 2, "error: out/a.png: no space left"),
        (OSError("the hub is down"), 2, "error: the hub is down"),
        (PermissionError(13, "Permission denied", b"p.csv"), 2, "error: p.csv: permission denied"),
        (SystemExit(1), 141, ""),
    ],
)
def test_errors_of_the_system_are_one_line(
    error: BaseException,
    code: int,
    told: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert main(broken(monkeypatch, error)) == code
    assert capsys.readouterr().err.startswith(told)


def test_a_reader_who_has_gone_is_no_missed_limit() -> None:
    for command in ("methods", "prompts"):
        run = subprocess.run(
            f"{sys.executable} -m expunge {command} | true; exit ${{PIPESTATUS[0]}}",
            shell=True, executable="/bin/bash", capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert run.returncode in (0, 141), run.stderr
        assert run.stderr == ""
