"""Every command in the README and in docs/ runs."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from expunge.cli import main

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "src/expunge/models/emoji/CARD.md",
    ROOT / "training/emoji/README.md",
]


def blocks(language: str) -> list[pytest.param]:
    return [
        pytest.param(text, id=f"{page.relative_to(ROOT)}-{number}")
        for page in PAGES
        for number, text in enumerate(
            re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M)
        )
    ]


@pytest.mark.slow
@pytest.mark.parametrize("text", blocks("bash"))
def test_commands_run(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for line in text.splitlines():
        program, *arguments = shlex.split(line, comments=True) or [""]
        if program == "expunge":
            assert main(arguments) == 0, line
        elif program:
            pytest.fail(f"only expunge commands stand in bash blocks: {line}")


@pytest.mark.slow
@pytest.mark.parametrize("text", blocks("python"))
def test_programs_run(text: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    subprocess.run([sys.executable, "-c", text], cwd=tmp_path, env=environment, check=True)


@pytest.mark.parametrize("text", blocks("yaml"))
def test_policies_load(text: str, tmp_path: Path) -> None:
    from expunge import Policy

    (tmp_path / "policy.yaml").write_text(text)
    assert Policy.load(tmp_path / "policy.yaml").erase


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8")):
            target = page.parent / link
            assert target.exists(), f"{page.name}: {link}"
            if target.suffix == ".md":  # their blocks are run as well, here or by test_contributing
                assert target.resolve() in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]


def test_make_targets_named_in_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", readme, re.M):
        assert f"\n{target}:" in makefile
