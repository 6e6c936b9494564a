"""An ``--output`` that can't be written is refused before the work, by every command."""

import re
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from expunge.cli import main
from expunge.cli.evaluate import table
from expunge.errors import ExpungeError
from expunge.files import check_output, replacing, write_text
from expunge.report.words import change
from expunge.statistics.rates import Estimate
from made_up import report

FILES = {
    "erase": ["--concept", "ghost", "--model", "no/such"],
    "prior": ["--prompts", "none.txt", "--model", "no/such"],
    "report": ["none"],
    "export": ["none.safetensors", "--to", "weights"],
    "import": ["none.pt"],
    "compose": ["none.safetensors"],
    "train-classifier": ["none"],
}
FOLDERS = {
    "generate": ["--prompt", "ghost", "--model", "no/such"],
    "audit": ["no/such", "--concept", "ghost"],
    "bench": [],
    "demo": [],
    "export": ["none.safetensors", "--to", "peft"],
}


def places(tmp_path: Path, name: str) -> dict[str, str]:
    """Places where nothing called ``name`` can be written, with what is said of each."""
    (tmp_path / "file").touch()
    (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    return {
        f"file/{name}": "is no folder",
        f"file/{name}/{name}": "no folder",
        f"link/{name}": "is no folder",
        f"/dev/null/{name}": "is no folder",
        f"/proc/{name}": "can't be written",
        f"{300 * 'x'}/{name}": "file name too long",
        f"{300 * 'x'}{name}": "file name too long",
        f"a\0{name}": "null",
    }


@pytest.mark.parametrize("command", FILES)
def test_a_file_that_cannot_be_written_is_refused_before_the_work(
    command: str, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    wrong = {**places(tmp_path, "a.safetensors"), "a.safetensors": "no file"}
    before = sorted(tmp_path.iterdir())
    for place, told in wrong.items():
        assert main([command, *FILES[command], "--output", place]) == 2
        error = capsys.readouterr().err
        assert told in error
        assert error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("command", FOLDERS)
def test_a_folder_that_cannot_be_written_is_refused_before_the_work(
    command: str, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    wrong = {**places(tmp_path, "out"), "file": "no folder" if command != "export" else "exists"}
    before = sorted(tmp_path.iterdir())
    for place, told in wrong.items():
        assert main([command, *FOLDERS[command], "--output", place]) == 2
        error = capsys.readouterr().err
        assert told in error, place
        assert error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_a_place_that_can_be_written_is_left_as_it_is(tmp_path: Path) -> None:
    check_output(tmp_path / "new" / "folders" / "file")
    check_output(tmp_path / "new" / "folders", folder=True)
    check_output(tmp_path, folder=True)
    assert not any(tmp_path.iterdir())


def test_nothing_that_is_read_is_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report(tmp_path).save(tmp_path)
    before = (tmp_path / "report.json").read_bytes()
    (tmp_path / "alias.safetensors").symlink_to("report.json")
    files = [tmp_path / "report.json", tmp_path / "alias.safetensors"]
    for arguments in (
        ["report", str(tmp_path), "--output", str(files[0])],
        ["compose", str(files[1]), "--output", str(files[1])],
        ["import", str(files[0]), "--output", str(files[1])],
        ["export", str(files[1]), "--to", "weights", "--output", str(files[1])],
        ["prior", "--legacy", str(files[0]), "--output", str(files[1])],
    ):
        assert main(arguments) == 2
        assert "would be lost" in capsys.readouterr().err
    assert files[0].read_bytes() == before


def test_an_error_names_what_was_to_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError) as error:
        write_text(tmp_path / "folder", "words")
    assert error.value.filename == str(tmp_path / "folder")
    with pytest.raises(FileNotFoundError) as error, replacing(tmp_path / "a") as temporary:
        save_file({"a": torch.zeros(1)}, temporary / "below")
    assert error.value.filename == str(tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    with replacing(tmp_path / "sub" / "a") as temporary:
        temporary.touch()
    ours, pid = temporary.name, temporary.name.rpartition("-")[2]
    dead = tmp_path / "new" / ours.replace(pid, f"{2**22 + 1}.tmp")
    alive = tmp_path / "new" / ours.replace(pid, "1.tmp")
    dead.parent.mkdir()
    dead.touch()
    alive.touch()
    write_text(tmp_path / "new" / "b", "words")
    assert {path.name for path in dead.parent.iterdir()} == {alive.name, "b"}


def test_names_of_255_bytes_can_be_written(tmp_path: Path) -> None:
    name = 127 * "é" + "x"
    check_output(tmp_path / name)
    write_text(tmp_path / name, "words")
    assert (tmp_path / name).read_text() == "words"
    with pytest.raises(ExpungeError, match="file name too long"):
        check_output(tmp_path / f"{name}x")


def test_names_are_never_taken_for_markup(
    pico_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit, folder = tmp_path / "[bold]a[", tmp_path / "[x]out"
    edit.mkdir()
    named = ["--concept", "[red]ghost", "--anchor", "dog", "--model", str(pico_folder)]
    assert main(["erase", *named, "--output", str(edit / "e.safetensors")]) == 0
    assert "[red]ghost" in capsys.readouterr().err
    drawn = ["generate", "--model", str(pico_folder), "--prompt", "a dog", "--steps", "1"]
    assert main([*drawn, "--output", str(folder)]) == 0
    assert "[x]out" in capsys.readouterr().err


def test_erase_prints_no_empty_line(
    pico_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["--model", str(pico_folder), "--output", str(tmp_path / "e.safetensors")]
    assert main(["erase", "--concept", "ghost", "--anchor", "dog", *own]) == 0
    assert "" not in capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("width", [80, 160])
def test_the_table_fits_the_terminal(width: int, tmp_path: Path) -> None:
    console = Console(width=width, record=True, markup=False)
    console.print(table(report(tmp_path).evaluations[0], width))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    assert any("21 of 21" in line for line in lines)
    assert any(re.search(r"\(\d+\.\d–\d+\.\d %\)", line) for line in lines)


def test_a_change_of_nothing_has_no_sign_of_minus(tmp_path: Path) -> None:
    row = next(r for r in report(tmp_path).evaluations[0].measurements if r.difference)
    nothing = Estimate(-1e-9, (-1e-9, -1e-9), 10)
    assert "−" not in "".join(change(row.model_copy(update={"difference": nothing})))


@pytest.mark.parametrize("form", [("--output", ""), ("--output=",)])
def test_an_option_without_content_is_refused(
    form: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "--prompt", "ghost", "--steps", "1", *form]) == 2
    assert capsys.readouterr().err.startswith("error: --output: nothing is given")
    assert not any(tmp_path.iterdir())


def test_the_anchor_can_be_the_empty_prompt(tmp_path: Path, pico_folder: Path) -> None:
    output = tmp_path / "edit.safetensors"
    erased = ["--concept", "ghost", "--anchor", "", "--output", str(output)]
    assert main(["erase", "--model", str(pico_folder), *erased]) == 0
    assert output.is_file()
