"""UCE beside its two released programs."""

from collections.abc import Iterator, Mapping

from conformance.case import Case, Difference, weight_changes
from expunge.concepts import Concept, Policy
from expunge.errors import Unsupported
from expunge.methods import erase

PROGRAMS = ("2023", "2025")
"""Those that are known, by the year of their release."""


def weights(case: Case) -> Iterator[Difference]:
    """Weight changes of both released programs, in single and in double precision."""
    if case["variant"] not in PROGRAMS:
        raise Unsupported(f"uce: no program {case['variant']}")
    model = case.model()
    policy = Policy(erase=tuple(_concept(pair) for pair in case["pairs"]))
    edit = erase(
        model,
        policy,
        "uce",
        fidelity="original",
        variant=case["variant"],
        preserve=tuple(case.get("retain") or case.get("preserve") or ()),
        **case["params"],
    )
    yield from weight_changes(case, model, edit)


def _concept(pair: Mapping[str, str]) -> Concept:
    return Concept(target=pair["erase"], anchor=pair["guide"])
