"""``expunge diff``: what differs, in lines."""

from expunge.cli import main
from expunge.evaluation.records import Report
from made_up import SANTA, evaluation


def saved(folder, **outcomes):
    Report(evaluations=(evaluation(SANTA, folder, **outcomes),)).save(folder)
    return str(folder)


def test_the_same_twice_is_the_same(tmp_path, capsys):
    one, two = saved(tmp_path / "one"), saved(tmp_path / "two")
    assert main(["diff", one, two]) == 0
    shown = capsys.readouterr().out.splitlines()
    count = len(Report.load(one).evaluations[0].measurements)
    assert shown == [f"{count} of {count} numbers are the same"]
    assert main(["diff", one, f"{two}/report.json", "--everything"]) == 0
    assert capsys.readouterr().out.count("same") == count + 1


def test_what_moved_is_a_row(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    one, two = saved(tmp_path / "one"), saved(tmp_path / "two", still_drawn=20)
    assert main(["diff", one, two]) == 0
    shown = capsys.readouterr().out
    assert "apart" in shown
    assert "asked differently" not in shown
    assert "1 of 21" in shown
    assert "20 of 21" in shown


def test_a_folder_without_a_report_is_one_line(tmp_path, capsys):
    assert main(["diff", saved(tmp_path / "one"), str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "can't read the report" in error
