"""``expunge methods``: all methods with what they cost, and one with its settings and presets."""

from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import BaseModel, Field, create_model

from expunge.cli import main
from expunge.cli.methods import cost
from expunge.edits.edit import Edit
from expunge.method.base import Trained
from expunge.method.presets import presets
from expunge.methods import METHODS
from expunge.settings import meanings


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["methods", *arguments]) == 0
    return capsys.readouterr().out


def test_every_method_is_listed_with_its_paper_and_cost(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys).splitlines()
    for name in METHODS:
        method = METHODS.get(name)
        at = lines.index(f"{name}: {method.title} ({method.year}), {method.url}")
        assert lines[at + 1] == f"  {cost(method)}"


def test_the_cost_is_that_of_the_defaults() -> None:
    assert cost(METHODS.get("uce")) == "solves in seconds"
    assert cost(METHODS.get("mace")) == "solves, with 50 steps of each adapter"
    assert cost(METHODS.get("uce-debias")) == "solves, with 30 rounds at most"
    assert cost(METHODS.get("esd")) == "trains: 200 steps, batches of 4"
    for name in METHODS:
        method = METHODS.get(name)
        if issubclass(method, Trained):
            stops_early = "finished" in vars(method)
            assert cost(method).startswith("trains: at most" if stops_early else "trains: ")
            assert f" {method.model_fields['iterations'].default} steps" in cost(method)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_shown_with_settings_defaults_and_presets(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    lines = printed(capsys, name).splitlines()
    method = METHODS.get(name)
    told = meanings(method)
    assert list(told) == list(method.model_fields)
    for field, meaning in told.items():
        described = meaning[:40]
        assert described, field
        assert any(line.split()[:1] == [field] and described in line for line in lines), field
    for preset in presets(method).values():
        at = lines.index(
            f"preset {preset.name}: {preset.kind}, for {preset.model}, fidelity {preset.fidelity}"
        )
        assert lines[at + 1] == f"  {preset.source}"
        assert [part.split("=")[0] for part in lines[at + 2].split() if "=" in part] == list(
            preset.settings
        )


def test_defaults_are_written_as_they_are_set(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    rows = [line.split()[:2] for line in printed(capsys, "mace").splitlines()]
    for row in (["lamb", "0.5"], ["prior", "default"], ["focal", "true"], ["contexts", "[]"]):
        assert row in rows
    assert ["attributes", "required"] in [
        line.split()[:2] for line in printed(capsys, "uce-debias").splitlines()
    ]


def test_an_unknown_method_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "maze"]) == 2
    assert "unknown method 'maze'; did you mean mace" in capsys.readouterr().err


def test_erase_takes_a_preset_and_what_is_set_goes_first(pico_folder: Path, tmp_path: Path) -> None:
    edit = tmp_path / "ghost.safetensors"
    arguments = ["erase", "--model", str(pico_folder), "--output", str(edit)]
    arguments += ["--concept", "ghost", "--method", "rece", "--preset", "unsafe"]
    assert main([*arguments, "--set", "epochs=1"]) == 0
    settings = Edit.load(edit).provenance[0].settings
    wanted = {"preset": "unsafe", "regular_scale": 0.1, "epochs": 1}
    assert wanted.items() <= settings.items()


def test_a_setting_means_what_its_docstring_says() -> None:
    class Base(BaseModel):
        kept: int = 1
        """Said of the
        base."""
        changed: int = Field(2, description="given")

    class Own(Base):
        NOTHING: ClassVar[int] = 0
        """No setting."""
        changed: int = 3
        """Said again."""
        silent: int = 4

    assert meanings(Base) == {"kept": "Said of the base.", "changed": "given"}
    assert meanings(Own) == {"kept": "Said of the base.", "changed": "Said again.", "silent": ""}
    assert meanings(create_model("Nowhere", of=(int, 1))) == {"of": ""}
