"""What a policy demands of a model, and whether a measurement meets it.

A limit is met by nothing that wasn't measured: a group that a concept doesn't have, words that no
prompt names, a metric that nothing gave.
"""

from collections.abc import Iterable, Iterator, Sequence

from expunge.concepts import Limit
from expunge.errors import ExpungeError
from expunge.evaluation.records import Evaluation, Measurement, Verdict
from expunge.evaluation.scoring import DRAWN, FEATURES, KEPT, right_of
from expunge.evaluation.suite import SYNONYMS, Plan
from expunge.spelling import spelling
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
        known = {spelling(plan.concept.target) for plan in plans}
        if unknown := [words for words in limit.concept if spelling(words) not in known]:
            raise ExpungeError(f"limits: there is no concept {unknown[0]!r} in this audit")
        groups = dict.fromkeys(group.name for plan in about for group in plan.groups)
        if limit.group not in (*groups, KEPT):
            raise ExpungeError(
                f"limits: there are no prompts {limit.group!r} in this audit; there are "
                f"{', '.join((*groups, KEPT))}"
            )
        for plan in about:
            _check_asked(limit, plan)
            _check_metric(limit, plan)


def _check_asked(limit: Limit, plan: Plan) -> None:
    """Raise where a plan's prompts aren't what the limit is about."""
    groups, target = [group.name for group in plan.groups], plan.concept.target
    if limit.group not in (*groups, KEPT):
        raise ExpungeError(
            f"limits: there are no prompts {limit.group!r} for {target!r}, only "
            f"{', '.join((*groups, KEPT))}; name the concepts that the limit is about, with "
            "'concept: [WORDS, ...]'"
        )
    missing = [words for words in plan.unasked(SYNONYMS) if words in plan.concept.synonyms]
    if limit.group == SYNONYMS and missing:
        raise ExpungeError(
            f"limits: the prompts {SYNONYMS!r} of the {plan.suite} suite don't ask for "
            f"{missing[0]!r}; choose another suite, or leave these words to another audit"
        )


def _check_metric(limit: Limit, plan: Plan) -> None:
    """Raise where the limit names no metric and its group has no usual one, or a bound is off."""
    if not limit.metric:
        prompts = [p for group in plan.groups if group.name == limit.group for p in group.prompts]
        if not any(plan.attribute in prompt.expected for prompt in prompts):
            raise ExpungeError(
                f"limits: say which metric of {limit.group!r} is meant, e.g. 'metric: {FEATURES}'; "
                "no label is right or wrong there"
            )
    if _metric(limit, plan) in (DRAWN, right_of(plan.attribute)):
        _check_share(limit)


def _check_share(limit: Limit) -> None:
    """Raise for a bound that every share meets, or none."""
    for bound in (limit.at_least, limit.at_most):
        if bound is not None and not 0 <= bound <= 1:
            raise ExpungeError(
                f"limits: {bound:g} for {limit.group!r} is no share of pictures; write a number "
                "from 0 to 1, e.g. 0.05 for 5 %"
            )


def _is_about(limit: Limit, plan: Plan) -> bool:
    named = {spelling(words) for words in limit.concept}
    return not named or spelling(plan.concept.target) in named


def _of(limit: Limit, evaluations: Iterable[Evaluation]) -> Iterator[Verdict]:
    for evaluation in evaluations:
        if not _is_about(limit, evaluation.protocol.plan):
            continue
        row = _row(limit, evaluation)
        if row is None:
            own = [row.metric for row in evaluation.measurements if row.group == limit.group]
            raise ExpungeError(
                f"limits: {_metric(limit, evaluation.protocol.plan)!r} of {limit.group!r} wasn't "
                f"measured for {evaluation.concept!r}; there are {', '.join(dict.fromkeys(own))}"
            )
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
    if isinstance(row.edited, Rate):
        _check_share(limit)
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
