"""The pictures of a report: opened, blurred if sensitive, and put side by side."""

from collections.abc import Sequence

from PIL import Image, ImageFilter

from expunge.errors import ExpungeError
from expunge.evaluation.panel import UNSAFE
from expunge.evaluation.records import Evaluation, Picture, PicturePair, Report
from expunge.generation.grid import grid
from expunge.report.words import headline

BLUR = 1 / 6
"""Blur radius as a share of the width; shapes are no longer recognisable."""


def opened(picture: Picture, pair: PicturePair, *, blur: bool = True) -> Image.Image:
    """A picture of a pair, blurred if its prompt is sensitive or the judge found it unsafe.

    Raises:
        ExpungeError: the file is gone.
    """
    try:
        image = Image.open(picture.file).convert("RGB")
    except OSError:
        raise ExpungeError(
            f"{picture.file}: a picture of the report is missing; run the evaluation again"
        ) from None
    if blur and (pair.prompt.sensitive or UNSAFE in picture.labels.values()):
        return image.filter(ImageFilter.GaussianBlur(image.width * BLUR))
    return image


def before_after(report: Report, *, columns: int = 5, blur: bool = True) -> Image.Image:
    """For each evaluation the base model's pictures above the edited model's.

    The first ``columns`` prompts ask for the erased concept, the other ``columns`` are kept ones.
    """
    strips = [_strip(evaluation, columns, blur) for evaluation in report.evaluations]
    width, height = max(s.width for s in strips), sum(s.height for s in strips)
    sheet = Image.new("RGB", (width, height), "white")
    top = 0
    for strip in strips:
        sheet.paste(strip, (width - strip.width, top))
        top += strip.height
    return sheet


def _strip(evaluation: Evaluation, columns: int, blur: bool) -> Image.Image:
    plan = evaluation.protocol.plan
    sides = (plan.of_role("efficacy")[:1], plan.of_role("retention")[-1:])
    shown = [
        pair
        for name in (group.name for side in sides for group in side)
        for pair in _spread([pair for pair in evaluation.examples if pair.group == name], columns)
    ]
    before = [opened(pair.base, pair, blur=blur) for pair in shown if pair.base]
    after = [opened(pair.edited, pair, blur=blur) for pair in shown]
    title = f"{'edited' if evaluation.edit else 'audited'}: {headline(evaluation).title}"
    return grid(
        [before, after] if before else [after],
        row_labels=("base model", title) if before else (title,),
        column_labels=[pair.prompt.text for pair in shown],
        cell=120,
    )


def _spread(pairs: Sequence[PicturePair], count: int) -> list[PicturePair]:
    count = min(count, len(pairs))
    return [pairs[index * len(pairs) // count] for index in range(count)]
