"""The page of a bench in its three forms, whatever the rows are."""

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from expunge.evaluation.bench import Bench, Row
from expunge.report.bench import MARKDOWN, PAGE, PLOT, counts, panels, write_page
from expunge.statistics.rates import Estimate, Rate

KNOWN = {"its name": Rate(20, 20), "synonyms": Rate(9, 10), "other objects": Rate(19, 20)}


def row(method: str, task: str = "pizza", concepts: int = 1, left: int = 1, **values) -> Row:
    after = {"its name": Rate(left, 20), "synonyms": Rate(2, 10), "other objects": Rate(18, 20)}
    made = {
        "edit": "0123456789abcdef",
        "base": KNOWN,
        "edited": after,
        "drift": Estimate(0.02, (0.01, 0.03), 40),
        "seconds": 2.0,
        "core_seconds": 3.0,
        "memory": 5e6,
        "size": 1e6,
    }
    return Row(
        method=method,
        task=task,
        seed=0,
        concepts=concepts,
        versions={"expunge": "0"},
        **({"refused": values["refused"]} if values else made),
    )


ROWS = {
    "all": (row("uce"), row("esd", left=20), row("uce", "five & more", 5)),
    "refused": (row("uce"), row("spm", refused="it <can't>: no 'word'")),
    "nothing": (row("spm", refused="no"), row("cpe", "five", 5, refused="no")),
    "named only": (
        row("uce").model_copy(
            update={
                "base": {name: KNOWN[name] for name in ("its name", "other objects")},
                "edited": {"its name": Rate(0, 20), "other objects": Rate(0, 20)},
            }
        ),
    ),
}


class Closed(HTMLParser):
    """Fails where a tag isn't closed, or closed in the wrong place."""

    VOID = frozenset({"meta", "img", "br", "line", "circle", "rect"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


@pytest.fixture(params=ROWS)
def written(request, tmp_path) -> tuple[tuple[Row, ...], Path]:
    rows = ROWS[request.param]
    assert write_page(Bench.load(), rows, tmp_path) == tmp_path / PAGE
    return rows, tmp_path


def test_the_plot_is_a_picture_of_its_own(written):
    rows, folder = written
    root = ElementTree.parse(folder / PLOT).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    shown = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    for row in rows:
        assert (row.method in shown) is any(
            other.method == row.method and not other.refused for other in rows
        )


def test_the_page_is_well_formed_and_needs_nothing_else(written):
    rows, folder = written
    page = (folder / PAGE).read_text()
    Closed(page)
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    assert "<script" not in page
    assert "expunge 0." in page
    assert all(row.method in page for row in rows)


def test_the_tables_have_the_same_width_throughout(written):
    _, folder = written
    tables = re.findall(r"(?m)(?:^\|.*\n)+", (folder / MARKDOWN).read_text())
    assert tables
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_a_refusal_is_told_with_its_reason(tmp_path):
    write_page(Bench.load(), ROWS["refused"], tmp_path)
    assert r"spm refuses pizza (seed 0): it \<can't\>" in (tmp_path / MARKDOWN).read_text()
    assert "spm refuses pizza (seed 0): it &lt;can&#39;t&gt;" in (tmp_path / PAGE).read_text()


def test_tasks_of_as_many_things_stand_together():
    one, five = panels(ROWS["all"])
    assert (one.title, one.tasks) == ("one thing at a time", ("pizza",))
    assert (five.title, five.tasks) == ("5 things at once", ("five & more",))
    assert [line.method for line in one.lines] == ["uce", "esd"]


def test_counts_have_their_interval():
    (line,) = panels(ROWS["all"][:1])[0].lines
    assert counts(line, "its name") == "20 → 1 of 20 (1–24 %)"
    assert counts(line, "descriptions") == "–"
