"""The names that ``expunge`` itself offers."""

import runpy
import typing
from pathlib import Path

import pytest

import expunge

REFERENCE = Path(__file__).parent.parent / "docs" / "api.rst"
NAMES = [name for name in expunge.__all__ if not name.startswith("__")]


@pytest.mark.parametrize("name", NAMES)
def test_each_is_imported_documented_and_in_the_reference(name: str) -> None:
    public = getattr(expunge, name)
    assert public.__doc__
    assert f"~{public.__module__}.{public.__qualname__}\n" in REFERENCE.read_text(encoding="utf-8")


def test_type_checkers_see_the_names_that_programs_get(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(typing, "TYPE_CHECKING", True)
    seen = runpy.run_path(expunge.__file__)
    used = {"Any", "TYPE_CHECKING", "import_module"}
    assert {name for name in seen if not name.startswith("_")} - used == {*NAMES}
    assert all(seen[name] is getattr(expunge, name) for name in NAMES)


def test_they_are_listed_before_any_is_imported() -> None:
    assert dir(expunge) == sorted(expunge.__all__)
