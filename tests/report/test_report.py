"""The page: honest, complete, readable by everyone, and in need of nothing else."""

import re
from html import unescape
from html.parser import HTMLParser

import pytest
from PIL import Image

from expunge.cli import main
from expunge.concepts import Concept
from expunge.errors import ExpungeError
from expunge.evaluation.records import Report
from expunge.report.html import to_html
from expunge.report.pictures import before_after, opened
from expunge.report.words import headline, keep_list
from made_up import INK, SANTA, evaluation, report


class Tags(HTMLParser):
    """Every tag with its attributes, and that each one is closed."""

    VOID = frozenset({"meta", "img", "br", "line", "circle"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def all(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture
def page(tmp_path):
    return to_html(report(tmp_path))


def test_the_page_needs_nothing_else(page):
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    assert "url(" not in page
    assert "<script" not in page


def test_the_page_can_be_read_without_seeing_it(page):
    tags = Tags(page)
    assert tags.open == []
    assert all(image["alt"] for image in tags.all("img"))
    assert all("scope" in head for head in tags.all("th"))
    assert tags.all("html") == [{"lang": "en"}]
    assert all(plot["role"] == "img" and plot["aria-label"] for plot in tags.all("svg"))
    ids = [attributes["id"] for _, attributes in tags.found if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_every_figure_has_its_number_and_interval(tmp_path):
    said = headline(evaluation(SANTA, tmp_path))
    assert said.title == "santa claus (character), UCE"
    assert said.sentences[0] == (
        "Asked for by name, santa claus was recognised in 21 of 21 (100.0 %, 95 % CI "
        "84.5–100.0 %) with the base model and in 1 of 21 (4.8 %, 95 % CI 0.8–22.7 %) with the "
        "edited model, a change of −95.2 points (95 % CI −99.2 to −71.6)."
    )
    assert len(said.sentences) == len(said.figures) == 4
    assert all(sentence.count("95 % CI") == 3 for sentence in said.sentences)


def test_the_page_claims_no_more_than_it_measured(page):
    assert "What this does not show" in page
    told = r"Of the \d+ objects that show what is kept, 1 were on the edit's list"
    assert re.search(told, unescape(page))
    assert not re.findall(r"\b(removed|eliminated|safe|guaranteed)\b", page)
    for word in ("fingerprint", "SHA-256", "guidance scale 4.0", "steps 20", "All prompts"):
        assert word in page


@pytest.mark.parametrize("kept", ["dog face", "Dog  Face", "dog\u200b face"])
def test_what_was_kept_is_found_however_it_is_spelt(tmp_path, kept):
    found = evaluation(SANTA, tmp_path)
    part = {**found.provenance[0], "keep": [kept]}
    told = keep_list(found.model_copy(update={"provenance": (part,)}))
    assert ", 1 were on the edit's list" in told


def test_sensitive_pictures_are_blurred_unless_asked_otherwise(tmp_path):
    bomb = Report(evaluations=(evaluation(Concept(target="bomb", kind="unsafe"), tmp_path),))
    pair = bomb.evaluations[0].examples[0]
    half = Image.new("RGB", (64, 64), "white")
    half.paste("black", (0, 0, 32, 64))
    half.save(pair.base.file)
    assert opened(pair.base, pair, blur=False).getpixel((30, 30)) == (0, 0, 0)
    assert opened(pair.base, pair).getpixel((30, 30))[0] > 60
    assert "Pictures of sensitive prompts are blurred" in to_html(bomb)
    assert "Pictures of sensitive prompts are blurred" not in to_html(bomb, blur=False)


def test_words_are_escaped(tmp_path):
    made = evaluation(INK, tmp_path)
    named = made.model_copy(update={"summary": "<script>alert(1)</script>"})
    assert "<script" not in to_html(Report(evaluations=(named,)))


def test_a_picture_that_is_gone_is_named(tmp_path):
    made = report(tmp_path)
    made.evaluations[0].examples[0].base.file.unlink()
    with pytest.raises(ExpungeError, match="a picture of the report is missing"):
        to_html(made)


def test_before_and_after_stand_above_each_other(tmp_path):
    sheet = before_after(report(tmp_path), columns=3)
    assert sheet.width > 6 * 120
    assert sheet.height > 4 * 120


def test_the_command_merges_reports(tmp_path, capsys):
    for concept in (SANTA, INK):
        folder = tmp_path / concept.target.replace(" ", "-")
        Report(evaluations=(evaluation(concept, folder),)).save(folder)
    folders = [str(tmp_path / "santa-claus"), str(tmp_path / "ink")]
    assert main(["report", *folders, "--output", str(tmp_path / "both.html")]) == 0
    page = (tmp_path / "both.html").read_text()
    assert "santa claus (character), UCE" in page
    assert "ink (style), UCE" in page


def test_a_folder_without_a_report_is_one_line(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert main(["report"]) == 2
    assert main(["evaluate", "--output", str(tmp_path)]) == 2
