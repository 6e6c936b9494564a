"""How two reports differ: in how they measured, and in what they found."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from expunge.errors import ExpungeError
from expunge.evaluation.records import Evaluation, Measurement, Report
from expunge.statistics.rates import Estimate, Rate


class NumberChange(NamedTuple):
    """A measurement that both reports have."""

    concept: str
    group: str
    metric: str
    before: Rate | Estimate
    after: Rate | Estimate

    @property
    def same(self) -> bool:
        return self.before == self.after

    @property
    def apart(self) -> bool:
        """Whether the two 95 % intervals don't overlap."""
        (low1, high1), (low2, high2) = self.before.interval, self.after.interval
        return high1 < low2 or high2 < low1


class Diff(NamedTuple):
    """How the second report differs from the first."""

    asked: tuple[str, ...]
    """Differences in how the numbers were made, a line each; empty if there are none."""
    changes: tuple[NumberChange, ...]
    only_first: tuple[str, ...]
    """Concepts, and measurements of shared concepts, that only the first report has."""
    only_second: tuple[str, ...]

    @property
    def same(self) -> bool:
        return all(change.same for change in self.changes) and not (
            self.only_first or self.only_second
        )


def diff(first: Report, second: Report) -> Diff:
    """Compare the audited models' numbers.

    Raises:
        ExpungeError: the reports have no concept in common, or one has a concept twice.
    """
    known, other = _by_name(first), _by_name(second)
    if not known.keys() & other.keys():
        raise ExpungeError(
            f"nothing to compare: the first report is about {', '.join(known)}, the second about "
            f"{', '.join(other)}"
        )
    asked: dict[str, None] = {}
    changes: list[NumberChange] = []
    for name in [name for name in known if name in other]:
        asked |= dict.fromkeys(_asked(known[name], other[name]))
        changes += _changes(known[name], other[name])
    return Diff(
        tuple(asked), tuple(changes), tuple(_lacking(known, other)), tuple(_lacking(other, known))
    )


def _by_name(report: Report) -> dict[str, Evaluation]:
    found: dict[str, Evaluation] = {}
    for one in report.evaluations:
        name = f"{one.concept} ({one.protocol.plan.suite})"
        if name in found:
            raise ExpungeError(
                f"a report has {name} twice, of several edits; measure each into its own folder"
            )
        found[name] = one
    return found


def _lacking(one: Mapping[str, Evaluation], other: Mapping[str, Evaluation]) -> Iterator[str]:
    """What only ``one`` has."""
    for name, evaluation in one.items():
        if name not in other:
            yield name
            continue
        there = _rows(other[name])
        for group, metric in _rows(evaluation):
            if (group, metric) not in there:
                yield f"{name}: {group}, {metric}"


def _rows(evaluation: Evaluation) -> dict[tuple[str, str], Measurement]:
    return {(row.group, row.metric): row for row in evaluation.measurements}


def _asked(first: Evaluation, second: Evaluation) -> Iterator[str]:
    one, two = _flat(_how(first)), _flat(_how(second))
    for name in dict.fromkeys((*one, *two)):
        if one.get(name) != two.get(name):
            yield f"{name}: {one.get(name)} → {two.get(name)}"


def _how(evaluation: Evaluation) -> dict[str, Any]:
    """Everything that affects a number, without the long lists of prompts."""
    protocol = evaluation.protocol.model_dump(mode="json")
    plan = protocol.pop("plan")
    protocol |= {
        "suite": plan["suite"],
        "suite version": plan["version"],
        "size": plan["size"],
        "seeds": plan["seeds"],
        "prompts": sum(len(group["prompts"]) for group in plan["groups"]),
        "wording": sorted(
            prompt["text"] for group in plan["groups"] for prompt in group["prompts"]
        ),
        "edit": evaluation.edit or "none",
        "base": evaluation.base.fingerprint if evaluation.base else "none",
    }
    return protocol


def _flat(tree: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{before}{name} ")
        elif name == "wording":
            flat["prompts' words"] = f"{len(set(value))} different, {hash_of(value)}"
        else:
            flat[f"{before}{name}".replace("_", " ")] = value
    return flat


def hash_of(words: list[str]) -> str:
    """The first digits of a hash, by which lists can be told apart."""
    from expunge.files import digest

    return digest(words)[:8]


def _changes(first: Evaluation, second: Evaluation) -> Iterator[NumberChange]:
    after = _rows(second)
    for (group, metric), row in _rows(first).items():
        if (group, metric) in after:
            yield NumberChange(
                first.concept, group, metric, row.edited, after[group, metric].edited
            )
