"""What holds the structure: one seam for the model, one ladder for imports, and docs that agree."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "src" / "expunge").rglob("*.py"))
OUTSIDE = [path for path in SOURCES if "models" not in path.parts]
INSIDES = re.compile(r"\.pipe\b|alphas_cumprod|attn1|attn2")


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_only_models_know_what_is_inside_a_pipeline(path: Path) -> None:
    """``expunge.models`` is the seam: all others ask a ``Model``, so that a family is one file."""
    text = path.read_text(encoding="utf-8")
    prose = _docstrings(ast.parse(text))
    code = [
        f"{number}: {line}"
        for number, line in enumerate(text.splitlines(), 1)
        if INSIDES.search(line) and number not in prose
    ]
    assert not code


def _docstrings(tree: ast.Module) -> set[int]:
    """The lines of all strings that stand by themselves: they may tell a user of ``model.pipe``."""
    return {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }


def test_the_ladder_in_the_docs_is_the_one_that_is_enforced() -> None:
    """``lint-imports``, part of ``make check``, reads pyproject.toml; people read the docs."""
    tomllib = pytest.importorskip("tomllib")  # of Python 3.11
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    [layers] = [
        contract["layers"]
        for contract in settings["tool"]["importlinter"]["contracts"]
        if contract["type"] == "layers"
    ]
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    [ladder] = re.findall(r"^## The ladder\n.*?^```text\n(.*?)^```", page, re.S | re.M)
    printed = [re.split(r"\s{2,}", line)[0] for line in ladder.splitlines()]
    assert printed == [" | ".join(part.strip() for part in row.split("|")) for row in layers]


def test_the_package_brings_no_checks_of_its_own_numbers() -> None:
    """What compares us with the original programs stands beside the package, not in the wheel."""
    assert not (ROOT / "src" / "expunge" / "reference").exists()
    assert (ROOT / "conformance" / "__main__.py").exists()
