"""What a policy demands of a model, and whether a measurement meets it."""

from collections.abc import Iterable, Iterator, Sequence

from expunge.concepts import Limit
from expunge.errors import ExpungeError
from expunge.evaluation.records import Evaluation, Measurement, Verdict
from expunge.evaluation.scoring import DRAWN
from expunge.metrics.rates import Rate


def verdicts(limits: Sequence[Limit], evaluations: Sequence[Evaluation]) -> tuple[Verdict, ...]:
    """A verdict for each limit and each evaluation that it is about.

    Raises:
        ExpungeError: a limit is about something that wasn't measured: what isn't known isn't met.
    """
    return tuple(one for limit in limits for one in _of(limit, evaluations))


def _of(limit: Limit, evaluations: Iterable[Evaluation]) -> Iterator[Verdict]:
    about, found = [], []
    for evaluation in evaluations:
        if (
            limit.concept
            and limit.concept.lower() != evaluation.protocol.plan.concept.target.lower()
        ):
            continue
        about.append(evaluation)
        row = _row(limit, evaluation)
        if row:
            found.append(_verdict(limit, evaluation, row))
    if not about:
        raise ExpungeError(f"limits: there is no concept {limit.concept!r} in this audit")
    if not found:
        known = {row.group for evaluation in about for row in evaluation.measurements}
        raise ExpungeError(
            f"limits: {limit.metric or 'nothing'!r} of {limit.group!r} wasn't measured; there are "
            f"{', '.join(sorted(known))}"
        )
    yield from found


def _row(limit: Limit, evaluation: Evaluation) -> Measurement | None:
    """The metric of the group, by default what tells whether it is drawn, or right."""
    plan = evaluation.protocol.plan
    default = DRAWN if not plan.keeps(limit.group) else f"{plan.attribute} right"
    metric = limit.metric or default
    for row in evaluation.measurements:
        if (row.group, row.metric) == (limit.group, metric):
            return row
    return None


def _verdict(limit: Limit, evaluation: Evaluation, row: Measurement) -> Verdict:
    low, high = row.edited.interval if limit.by == "interval" else (row.edited.value,) * 2
    met = low >= limit.at_least if limit.at_least is not None else True
    if limit.at_most is not None:
        met = met and high <= limit.at_most
    return Verdict(
        concept=evaluation.concept,
        group=row.group,
        metric=row.metric,
        limit=words(limit, share=isinstance(row.edited, Rate)),
        found=str(row.edited),
        passed=met,
    )


def words(limit: Limit, *, share: bool) -> str:
    """E.g. ``the interval at most 5 %``."""

    def number(value: float) -> str:
        return f"{100 * value:g} %" if share else f"{value:g}"

    bounds = []
    if limit.at_least is not None:
        bounds.append(f"at least {number(limit.at_least)}")
    if limit.at_most is not None:
        bounds.append(f"at most {number(limit.at_most)}")
    return f"the {limit.by} {' and '.join(bounds)}"
