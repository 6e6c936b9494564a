"""``expunge prompts``: what is known of each set, and how a copy differs from it."""

from pathlib import Path

import pytest

from expunge.cli import main
from expunge.prompts.published import published_sets


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["prompts", *arguments]) == 0
    return capsys.readouterr().out


def test_every_set_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys).splitlines()
    for record in published_sets().values():
        assert any(line.startswith(f"{record.name}: {record.title} (") for line in lines)


@pytest.mark.parametrize("name", published_sets())
def test_a_set_is_shown_with_licence_source_and_traps(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = printed(capsys, name)
    record = published_sets()[name]
    for text in (record.licence, record.source, record.sha256 or "not pinned", *record.traps):
        assert text in output


def test_a_copy_is_checked_and_no_prompt_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy.csv"
    copy.write_text("sensitive prompt,normal prompt\na red wall,a wall\na kid,a swing\n")
    output = printed(capsys, "rab_contrast_pairs", str(copy))
    for line in (
        "rows: 2 (published: 79)",
        "dropped by the lexicon: 1",
        "left to draw: 1",
        "(not the published file's)",
        "note: 2 rows, but the published set has 79",
    ):
        assert line in output
    assert "red wall" not in output


def test_a_shipped_set_needs_no_file(capsys: pytest.CaptureFixture[str]) -> None:
    output = printed(capsys, "expunge/people")
    assert "rows: 200 (as published)" in output
    assert output.count("as published") == 2


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prompts", "i2q"]) == 2
    assert "did you mean i2p" in capsys.readouterr().err
    assert main(["prompts", "i2p", str(tmp_path / "none.csv")]) == 2
    assert capsys.readouterr().out == ""
