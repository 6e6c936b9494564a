"""The model card has the report's numbers and claims no more; the certificate hashes them."""

import json
import re

import pytest
import yaml
from huggingface_hub import ModelCard
from rich.console import Console

from expunge.cli.evaluate import show_headline
from expunge.concepts import Concept
from expunge.evaluation.records import ComparedModel, Report, Verdict
from expunge.files import sha256
from expunge.report.card import (
    CARD,
    CERTIFICATE,
    card,
    numbers,
    write_card,
    write_certificate,
)
from expunge.report.html import to_html
from expunge.report.words import cell
from made_up import SANTA, evaluation, report


def alone(folder) -> Report:
    """As if nothing had been edited and there were no base."""
    one = evaluation(SANTA, folder)
    rows = [row for row in one.measurements if row.unit == "share of pictures"]
    without = {"base": None, "difference": None, "paired": None}
    return Report(
        evaluations=(
            one.model_copy(
                update={
                    "edit": "",
                    "provenance": (),
                    "summary": "emoji, as it is",
                    "measurements": tuple(row.model_copy(update=without) for row in rows),
                }
            ),
        )
    )


def test_the_head_loads_and_has_every_share_of_the_report(tmp_path):
    made = report(tmp_path)
    path = write_card(made, tmp_path / CARD)
    loaded = ModelCard.load(path)
    assert loaded.data.library_name == "diffusers"
    assert loaded.data.base_model == "emoji"
    told = {(r.dataset_config, r.metric_type): r.metric_value for r in loaded.data.eval_results}
    shares = {
        (
            f"{e.concept}/{row.group}",
            re.sub("^concept drawn$", f"{e.concept} drawn", row.metric),
        ): round(row.edited.value, 4)
        for e in made.evaluations
        for row in e.measurements
        if row.unit == "share of pictures"
    }
    assert told == shares
    assert len(shares) > 10


def test_the_text_has_every_measurement_with_count_and_interval(tmp_path):
    made = report(tmp_path)
    text = card(made)
    lines = text.splitlines()
    for one in made.evaluations:
        assert f"Protocol `{one.protocol.id}`" in text
        for row in one.measurements:
            shown = cell(row.edited)
            (line, *_) = [
                line
                for line in lines
                if line.startswith(f"| {row.group} |") and shown.cases in line
            ]
            assert f"{shown.value} ({shown.interval}; {shown.cases})" in text
            assert line.count("|") == 6


def test_a_table_is_one_block(tmp_path):
    """A row after an empty line would be no row of the table."""
    text = card(report(tmp_path))
    assert len(re.findall(r"(?m)^\|---\|---\|---\|---\|---\|\n\| ", text)) == 2
    assert not re.search(r"(?m)^\| .*\|\n\n\| ", text)


def test_only_an_edited_model_is_called_edited(tmp_path):
    assert "# emoji, edited" in card(report(tmp_path))
    assert "This model was edited" in card(report(tmp_path))
    text = card(alone(tmp_path))
    assert "edited" not in text
    assert "# emoji\n" in text
    assert "base_model" not in yaml.safe_load(text.split("---")[1])


def test_a_base_is_named_unless_it_is_a_folder(tmp_path):
    (one,) = alone(tmp_path).evaluations
    named = one.model_copy(update={"base": ComparedModel(name="some/model", fingerprint="0" * 64)})
    folder = one.model_copy(
        update={"base": ComparedModel(name=str(tmp_path), fingerprint="0" * 64)}
    )
    assert "base_model: some/model" in card(Report(evaluations=(named,)))
    assert "base_model" not in card(Report(evaluations=(folder,)))


def test_words_that_nothing_asked_for_are_in_card_page_and_terminal(tmp_path):
    made = evaluation(SANTA, tmp_path)
    plan = made.protocol.plan
    more = plan.concept.model_copy(update={"synonyms": ("santa", "big [red] man")})
    asked = plan.model_copy(update={"concept": more})
    protocol = made.protocol.model_copy(update={"plan": asked})
    report = Report(evaluations=(made.model_copy(update={"protocol": protocol}),))
    told = "Not measured: no prompt asks for big [red] man."
    console = Console(record=True, width=200)
    show_headline(console, report.evaluations[0])
    assert told.replace("[red]", r"\[red\]") in card(report)
    assert told in to_html(report)
    assert told in console.export_text()
    assert "Not measured" not in card(Report(evaluations=(made,)))


def test_limits_are_in_the_card(tmp_path):
    verdict = Verdict(
        concept="ink",
        group="explicit",
        metric="concept drawn",
        limit="the interval at most 5 %",
        found="1 of 21 (4.8 %, 95 % CI 0.8–22.7 %)",
        passed=False,
    )
    text = card(report(tmp_path).model_copy(update={"verdicts": (verdict,)}))
    assert "| ink | explicit: concept drawn | the interval at most 5 % |" in text
    assert "**missed**" in text


@pytest.mark.parametrize("words", ["AC/DC: live", 'a "b" | c', "été"])
def test_any_name_makes_a_head_that_loads(tmp_path, words):
    (one,) = alone(tmp_path).evaluations
    plan = one.protocol.plan.model_copy(update={"concept": Concept(target=words)})
    protocol = one.protocol.model_copy(update={"plan": plan})
    named = one.model_copy(update={"concept": words, "protocol": protocol})
    text = card(Report(evaluations=(named,)))
    assert ModelCard(text).data.eval_results[0].dataset_config.startswith(words)


def test_the_certificate_hashes_what_it_certifies(tmp_path):
    made = report(tmp_path)
    made.save(tmp_path)
    stated = json.loads(write_certificate(made, tmp_path / CERTIFICATE).read_text())
    assert stated["report.json"] == sha256(tmp_path / "report.json")
    assert stated["numbers"] == numbers(Report.load(tmp_path))
    assert stated["model"] == {"name": "emoji", "sha256": "f" * 64}
    assert stated["edit"] == made.evaluations[0].edit
    assert stated["protocols"] == [one.protocol.id for one in made.evaluations]
    assert stated["judges"] == ["0" * 64]


def test_the_hash_of_the_numbers_knows_every_number(tmp_path):
    made, other = report(tmp_path), evaluation(SANTA, tmp_path / "other", still_drawn=2)
    assert numbers(made) == numbers(report(tmp_path / "again"))
    assert numbers(made) != numbers(Report(evaluations=(other, made.evaluations[1])))


def test_no_name_is_markup_in_the_card(tmp_path):
    made = evaluation(SANTA, tmp_path)
    name = "m<img src=x onerror=alert(1)>[x](javascript:1)|`a`\n# more"
    protocol = made.protocol.model_copy(update={"model": name})
    changed = made.model_copy(update={"protocol": protocol, "concept": "a|b\n\n<b>*c*"})
    text = card(Report(evaluations=(changed,)))
    body = text.split("\n---\n", 1)[1]
    assert not re.search(r"(?<!\\)(<img|\[x\]|<b>|\*c|`a)", body)
    assert "\n# more" not in body
    rows = [line for line in body.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {6}
