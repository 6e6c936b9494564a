"""UCE beside its two released programs."""

from collections.abc import Iterator, Mapping

from expunge.concepts import Concept, Policy
from expunge.edits.edit import edited_weights
from expunge.errors import ExpungeError
from expunge.methods import erase
from expunge.reference.case import Case, Difference, pooled


def weights(case: Case) -> Iterator[Difference]:
    """Weight changes of both released programs, in single and in double precision."""
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
    edited = edited_weights(model, edit.components, edit.names)
    base = {name: model.base_weight(name).double() for name in edited}
    ours = {name: weight - base[name] for name, weight in edited.items() if weight is not None}
    for file, tolerance in case["tolerance"].items():
        if file == "expected" and case.get("fp32_reliable") is False:
            continue
        theirs = case.file(file)
        if "M" in theirs:
            theirs = {name: weight @ theirs["M"] for name, weight in base.items()}
        if set(theirs) != set(ours):
            raise ExpungeError(f"{file}: {len(theirs)} tensors change, here {len(ours)}")
        change = {name: weight.double() - base[name] for name, weight in theirs.items()}
        yield Difference(pooled(ours, change), tolerance["rel_fro_of_change"])


def _concept(pair: Mapping[str, str]) -> Concept:
    return Concept(target=pair["erase"], anchor=pair["guide"])
