"""Our numbers beside those of the original programs."""

import json
import shutil
from pathlib import Path

import pytest
from conformance import __main__ as reference

DATA = Path(__file__).parent / "data" / "reference"


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, list[str]]:
    code = reference.main([str(argument) for argument in arguments])
    return code, capsys.readouterr().out.splitlines()


def test_the_small_set_agrees(capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = run(capsys, DATA / "cases")
    assert code == 0
    assert lines[-1] == "18 ok, 0 failed, 0 not supported"
    assert all(line.endswith((" ok", " not supported")) for line in lines[:-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "group", ["uce*", "esd*", "rece*", "mace*", "trce*", "cache*", "ac_*", "fmn*", "sepme_[acf]*"]
)
def test_the_full_set_agrees(
    capsys: pytest.CaptureFixture[str], full_reference: Path, group: str
) -> None:
    code, lines = run(capsys, full_reference / "cases", "--only", group)
    assert code == 0, "\n".join(lines)
    unsupported = [line for line in lines[:-1] if line.endswith("not supported")]
    assert not unsupported


def changed(tmp_path: Path, name: str, **values: object) -> Path:
    """A copy of a case with other parameters than the original ran with."""
    folder = tmp_path / "cases" / name
    shutil.copytree(DATA / "cases" / name, folder)
    shutil.copy(DATA / "cases" / "text_embeddings_plain.safetensors", folder.parent)
    case = json.loads((folder / "case.json").read_text())
    case["params"].update(values)
    (folder / "case.json").write_text(json.dumps(case))
    return folder.parent


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("uce2023_replace_uncond", {"lamb": 0.51}),
        ("uce2025_expand_art", {"erase_scale": 1.01}),
        ("esd_compvis_train3_xlayer", {"negative_guidance": 1.1}),
    ],
)
def test_other_numbers_fail(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, values: dict[str, float]
) -> None:
    code, lines = run(capsys, changed(tmp_path, name, **values), "--models", DATA)
    assert code == 1
    assert lines[0].endswith("FAILED")
    assert lines[-1] == "0 ok, 1 failed, 0 not supported"


def test_a_broken_case_fails_and_says_why(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cases = changed(tmp_path, "uce2025_expand_art")
    (cases / "uce2025_expand_art" / "expected.safetensors").unlink()
    code, lines = run(capsys, cases, "--models", DATA)
    assert code == 1
    assert "tensors change" in lines[0]


def test_no_case_is_an_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert reference.main([str(tmp_path)]) == 2
    assert "no case below" in capsys.readouterr().err
