"""SepME's repository has several programs; what a case was given says which one ran."""

from collections.abc import Callable, Iterator, Mapping

from conformance import ac, cie, fmn, sepce
from conformance.case import Case, Difference
from expunge.errors import Unsupported

PROGRAMS: Mapping[str, Callable[[Case], Iterator[Difference]]] = {
    "basis": sepce.shifts,
    "e_anchor": ac.sepme,
    "e_empty": cie.steps,
    "e_generic": fmn.logits,
    "protected": sepce.solutions,
}
"""What to compare, by an input that no other of these programs has."""


def programs(case: Case) -> Iterator[Difference]:
    """What the case's program is checked with."""
    given = {name.partition("/")[0] for name in case.file("inputs")}
    checks = [check for name, check in PROGRAMS.items() if name in given]
    if len(checks) != 1:
        raise Unsupported(f"sepme: no check for {case.get('variant')}")
    return checks[0](case)
