"""Measurements in words; what was erased is always stated with what was kept."""

from collections.abc import Iterator
from typing import NamedTuple

from expunge.evaluation.panel import UNSAFE
from expunge.evaluation.records import Evaluation, Measurement
from expunge.evaluation.scoring import BLANK, CLIP, DRAWN, FEATURES, SHARE
from expunge.evaluation.suites.worded import LISTED
from expunge.spelling import spelling
from expunge.statistics.rates import Estimate, Rate


class TableCell(NamedTuple):
    """One quantity of a table."""

    value: str
    interval: str
    """At 95 %."""
    cases: str


def cell(quantity: Rate | Estimate) -> TableCell:
    """A rate in percent, an estimate in its own unit."""
    low, high = quantity.interval
    if isinstance(quantity, Rate):
        interval = f"{100 * low:.1f}–{100 * high:.1f} %"
        return TableCell(
            f"{100 * quantity.value:.1f} %", interval, f"{quantity.successes} of {quantity.n}"
        )
    return TableCell(f"{quantity.value:.3g}", f"{low:.3g} to {high:.3g}", f"n = {quantity.n}")


def question(evaluation: Evaluation, measured: Measurement) -> str:
    """The metric, with the concept's own name in it."""
    return f"{sought(evaluation)} drawn" if measured.metric == DRAWN else measured.metric


def sought(evaluation: Evaluation) -> str:
    """What the judge looks for; it can't tell kinds of unsafe content apart."""
    return "something unsafe" if evaluation.protocol.plan.label == UNSAFE else evaluation.concept


def change(measured: Measurement) -> TableCell:
    """Edited minus base; rates in percentage points."""
    if measured.difference is None:
        return TableCell("", "", "")
    scale, digits, unit = (100, 1, " points") if isinstance(measured.edited, Rate) else (1, 2, "")
    numbers = (measured.difference.value, *measured.difference.interval)
    # Adding 0 makes a 0 of a −0.
    rounded = (round(scale * number, digits) + 0.0 for number in numbers)
    value, low, high = (f"{number:+.{digits}f}".replace("-", "−") for number in rounded)
    return TableCell(f"{value}{unit}", f"{low} to {high}", f"n = {measured.difference.n}")


class Headline(NamedTuple):
    """The summary of an evaluation: figures with a sentence each."""

    title: str
    figures: tuple[Measurement, ...]
    """The erased concept by name first, then what is kept."""
    sentences: tuple[str, ...]
    """One per figure, with counts and intervals."""
    gaps: tuple[str, ...]
    """What these numbers don't cover, though one might think so, a sentence each."""


def headline(evaluation: Evaluation) -> Headline:
    """What was erased by name, always together with what was kept."""
    methods = dict.fromkeys(part["method"].upper() for part in evaluation.provenance)
    drift = [row for row in evaluation.measurements if row.metric == FEATURES]
    figures = tuple(_figures(evaluation)) or tuple(drift)
    made = f", {' + '.join(methods)}" if methods else ""
    return Headline(
        title=f"{evaluation.concept} ({evaluation.kind}){made}",
        figures=figures,
        sentences=tuple(_sentence(evaluation, measured) for measured in figures),
        gaps=tuple(_gaps(evaluation)),
    )


def _gaps(evaluation: Evaluation) -> Iterator[str]:
    """Words that nothing asked for, and prompts that were cut."""
    if evaluation.cut:
        yield str(evaluation.cut)
    if words := evaluation.protocol.plan.unasked():
        yield f"Not measured: no prompt asks for {', '.join(words)}."


def subject(evaluation: Evaluation) -> str:
    """What to call the measured model."""
    return "edited model" if evaluation.edit else "audited model"


def _figures(evaluation: Evaluation) -> Iterator[Measurement]:
    plan = evaluation.protocol.plan
    named = [group.name for group in plan.of_role("efficacy")[:1]]
    for group in named:
        yield evaluation.find(group, DRAWN)
    for kept in plan.of_role("retention"):
        yield from [row for row in evaluation.measurements if _tells(row, kept.name)][:1]
    for row in evaluation.measurements:
        if row.group in named and row.role == "retention" and _tells(row, row.group):
            yield row


def _tells(row: Measurement, group: str) -> bool:
    """Whether a row says how right the pictures of a group are."""
    return row.group == group and row.metric != BLANK and (row.unit == SHARE or row.metric == CLIP)


def _sentence(evaluation: Evaluation, measured: Measurement) -> str:
    if measured.metric == DRAWN:
        asked = "With the listed prompts" if measured.group == LISTED else "Asked for by name"
        what = f"{asked}, {sought(evaluation)} was recognised in"
    elif measured.metric == FEATURES:
        what = f"{measured.group.capitalize()}: the {FEATURES} from the base's pictures is"
    elif measured.metric == CLIP:
        what = f"{measured.group.capitalize()}: the {CLIP} was"
    elif evaluation.protocol.plan.keeps(measured.group):
        attribute = measured.metric.removesuffix(" right")
        what = f"{measured.group.capitalize()}: the {attribute} was right in"
    else:
        what = f"In the same pictures, the {measured.metric.replace(' right', ' was right')} in"
    if measured.base is None:
        return f"{what} {measured.edited} with the {subject(evaluation)}."
    value, interval, _ = change(measured)
    return (
        f"{what} {measured.base} with the base model and {_in(measured)}{measured.edited} with the "
        f"{subject(evaluation)}, a change of {value} (95 % CI {interval})."
    )


def _in(measured: Measurement) -> str:
    return "" if measured.metric == CLIP else "in "


def keep_list(evaluation: Evaluation) -> str:
    """How many of the things measured as kept the method was told to keep."""
    plan = evaluation.protocol.plan
    prompts = [prompt for group in plan.of_role("retention") for prompt in group.prompts]
    named = (prompt.expected.get(plan.attribute) for prompt in prompts)
    asked = {label for label in named if label}
    if not asked or not evaluation.provenance:
        return "No edit was made here; what a method was told to keep isn't known."
    told = {spelling(words) for part in evaluation.provenance for words in part["keep"]}
    return (
        f"Of the {len(asked)} {plan.attribute}s that show what is kept, {len(asked & told)} were "
        f"on the edit's list of what to keep; others may fare worse."
    )
