"""What a policy demands of a model, and whether a measurement meets it."""

from collections.abc import Iterable, Iterator, Sequence

from expunge.concepts import Limit
from expunge.errors import ExpungeError
from expunge.evaluation.records import Evaluation, Measurement, Verdict
from expunge.evaluation.scoring import DRAWN, KEPT, right_of
from expunge.evaluation.suite import Plan
from expunge.statistics.rates import Rate


def verdicts(limits: Sequence[Limit], evaluations: Sequence[Evaluation]) -> tuple[Verdict, ...]:
    """A verdict for each limit and each evaluation that it applies to.

    Raises:
        ExpungeError: a limit is about something that wasn't measured. It doesn't count as met.
    """
    check(limits, [evaluation.protocol.plan for evaluation in evaluations])
    return tuple(one for limit in limits for one in _of(limit, evaluations))


def check(limits: Sequence[Limit], plans: Sequence[Plan]) -> None:
    """Check that these plans measure what the limits are about; nothing needs to be drawn.

    Raises:
        ExpungeError: a limit names a concept or a group of prompts that they don't have.
    """
    for limit in limits:
        about = [plan for plan in plans if _is_about(limit, plan)]
        if not about:
            raise ExpungeError(f"limits: there is no concept {limit.concept!r} in this audit")
        groups = dict.fromkeys(group.name for plan in about for group in plan.groups)
        if limit.group not in (*groups, KEPT):
            raise ExpungeError(
                f"limits: there are no prompts {limit.group!r} in this audit; there are "
                f"{', '.join((*groups, KEPT))}"
            )


def _is_about(limit: Limit, plan: Plan) -> bool:
    return not limit.concept or limit.concept.lower() == plan.concept.target.lower()


def _of(limit: Limit, evaluations: Iterable[Evaluation]) -> Iterator[Verdict]:
    about = [one for one in evaluations if _is_about(limit, one.protocol.plan)]
    found = [(one, row) for one in about if (row := _row(limit, one))]
    if not found:
        own = [row for one in about for row in one.measurements if row.group == limit.group]
        raise ExpungeError(
            f"limits: {_metric(limit, about[0].protocol.plan)!r} of {limit.group!r} wasn't "
            f"measured; there are {', '.join(dict.fromkeys(row.metric for row in own))}"
        )
    for evaluation, row in found:
        yield _verdict(limit, evaluation, row)


def _metric(limit: Limit, plan: Plan) -> str:
    """The limit's metric, or its default."""
    if limit.metric:
        return limit.metric
    return right_of(plan.attribute) if plan.keeps(limit.group) else DRAWN


def _row(limit: Limit, evaluation: Evaluation) -> Measurement | None:
    metric = _metric(limit, evaluation.protocol.plan)
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
