"""Our numbers beside those of the original programs."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from conformance import __main__ as reference

DATA = Path(__file__).parent / "data" / "reference"

UNSUPPORTED = ("uce_sdxl", "uce_flux", "esd_flux", "esd_sdxl2026", "spm_sdxl")
"""Cases of programs for models that those methods don't know yet."""


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, list[str]]:
    code = reference.main([str(argument) for argument in arguments])
    return code, capsys.readouterr().out.splitlines()


def test_the_small_set_agrees(capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = run(capsys, DATA / "cases")
    assert code == 0
    assert lines[-1] == "31 ok, 0 failed, 0 not supported"
    assert all(line.endswith((" ok", " not supported")) for line in lines[:-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "group",
    [
        "uce*",
        "esd*",
        "rece_[rs]*",
        "mace*",
        "trce*",
        "cache*",
        "ac_*",
        "fmn*",
        "sepme*",
        "cpe*",
        "spm*",
        "uda*",
        "p4d*",
        "cce*",
        "rab*",
        "rece_attack*",
        "probe*",
        "sld*",
        "safree*",
    ],
)
def test_the_full_set_agrees(
    capsys: pytest.CaptureFixture[str], full_reference: Path, group: str
) -> None:
    code, lines = run(capsys, full_reference / "cases", "--only", group)
    assert code == 0, "\n".join(lines)
    unsupported = [line for line in lines[:-1] if line.endswith("not supported")]
    assert all(line.startswith(UNSUPPORTED) for line in unsupported)


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


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("uce2025_expand_art", {"variant": "2025-sdxl"}),
        ("esd_compvis_train3_xlayer", {"variant": "flux-2025"}),
        ("esd_compvis_train3_xlayer", {"variant": "trainer-2026 sdxl"}),
        ("uce2025_expand_art", {"method": "speed"}),
    ],
)
def test_a_program_that_is_not_there_is_no_failure(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, entries: dict[str, str]
) -> None:
    cases = changed(tmp_path, name)
    file = cases / name / "case.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))
    code, lines = run(capsys, cases, "--models", DATA)
    assert code == 0
    assert lines[-1] == "0 ok, 0 failed, 1 not supported"


def test_make_says_that_it_needs_cases() -> None:
    made = subprocess.run(
        ["make", "reference"], cwd=DATA.parents[2], capture_output=True, text=True, check=False
    )
    assert made.returncode
    assert "needs CASES=DIR" in made.stderr


def test_no_case_is_an_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert reference.main([str(tmp_path)]) == 2
    assert "no case below" in capsys.readouterr().err
