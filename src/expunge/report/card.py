"""A model card with the measured numbers, and a certificate with their hashes."""

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from expunge import __version__
from expunge.evaluation.records import Evaluation, Measurement, Report
from expunge.evaluation.scoring import SHARE
from expunge.files import digest, sha256, write_json, write_text
from expunge.report.html import environment
from expunge.report.words import cell, change, headline, question

CARD, CERTIFICATE = "README.md", "certificate.json"


def write_card(report: Report, path: str | os.PathLike[str]) -> Path:
    """Write a card for the hub and return its path. It claims only what was measured.

    Raises:
        ExpungeError: jinja2 isn't installed.
    """
    write_text(path, card(report))
    return Path(path)


def card(report: Report) -> str:
    """The card as Markdown; its header also holds the numbers, for the hub's tables."""
    from huggingface_hub import EvalResult, ModelCardData
    from markupsafe import Markup

    first = report.evaluations[0]
    data = ModelCardData(
        base_model=_base(first),
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["concept-erasure", "expunge"],
        model_name=_title(first),
        eval_results=[
            EvalResult(
                task_type="text-to-image",
                dataset_type=f"expunge-{evaluation.protocol.plan.suite}",
                dataset_name=f"{evaluation.concept}: {row.group}",
                dataset_config=f"{evaluation.concept}/{row.group}",
                dataset_revision=evaluation.protocol.id,
                metric_type=question(evaluation, row),
                metric_value=round(row.edited.value, 4),
            )
            for evaluation in report.evaluations
            for row in _told(evaluation)
        ],
    )
    pages = environment()
    pages.globals.update(headline=headline, question=question, cell=cell, change=change)
    text: str = pages.get_template("card.md.j2").render(
        head=Markup(data.to_yaml()), report=report, title=_title(first), told=_told
    )
    return text


def _title(evaluation: Evaluation) -> str:
    return f"{Path(evaluation.protocol.model).name}{', edited' if evaluation.edit else ''}"


def _base(evaluation: Evaluation) -> str | None:
    """The hub id of the model that it was made from, if known; folders don't count."""
    if not (evaluation.base or evaluation.edit):
        return None
    name = evaluation.base.name if evaluation.base else evaluation.protocol.model
    return None if Path(name).is_dir() else name


def _told(evaluation: Evaluation) -> Iterator[Measurement]:
    """The measurements that are shares of pictures."""
    return (row for row in evaluation.measurements if row.unit == SHARE)


def write_certificate(report: Report, path: str | os.PathLike[str]) -> Path:
    """Write which weights were measured, how and when, and hashes of the results."""
    place = Path(path)
    first = report.evaluations[0]
    write_json(
        place,
        {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "expunge": __version__,
            "model": {"name": first.protocol.model, "sha256": first.protocol.fingerprint},
            "base": first.base.model_dump() if first.base else None,
            "edit": first.edit or None,
            "protocols": [evaluation.protocol.id for evaluation in report.evaluations],
            "judges": sorted(
                {evaluation.protocol.judge_sha256 for evaluation in report.evaluations}
            ),
            "numbers": numbers(report),
            "report.json": sha256(place.parent / "report.json"),
        },
    )
    return place


def numbers(report: Report) -> str:
    """A hash of all measurements; equal hashes mean equal numbers."""
    return digest(
        [
            [row.model_dump(mode="json") for row in evaluation.measurements]
            for evaluation in report.evaluations
        ]
    )
