"""RECE beside its released program."""

from collections.abc import Iterator, Sequence

from conformance.case import Case, Difference, Tensors, pooled
from expunge.concepts import Concept, Policy
from expunge.edits.applied import edited_weights
from expunge.errors import ExpungeError
from expunge.methods import configured, erase
from expunge.methods.rece.closed import Epoch, stage_of
from expunge.methods.rece.method import RECE
from expunge.models import Model

EMBEDDINGS = {
    "close_regzero": "zero",
    "close_surrogatereg": "surrogate",
    "close_standardreg": "target",
}
PENALTIES = {"1st": "outputs", "2nd": "embedding", "both": "both"}


def weights(case: Case) -> Iterator[Difference]:
    """Weight changes after the last epoch, and the embeddings and weights of every epoch."""
    model, policy = case.model(), _policy(case)
    method = _method(case, model, policy)
    edit = erase(model, policy, method)
    edited = edited_weights(model, edit.components, edit.names)
    base = {name: model.base_weight(name).double() for name in edited}
    ours = {name: weight - base[name] for name, weight in edited.items() if weight is not None}
    start = method.start_edit(model)
    stage = stage_of(start, model) if start else method.uce.solve(model, policy, seed=0)
    rounds = list(method.rounds(model, policy, stage))
    for file, embeddings in (("expected", "adv_embeddings"), ("expected_fp64", "adv64")):
        if file == "expected" and case.get("fp32_reliable") is False:
            continue
        theirs = _changes(case.file(file), base)
        if set(theirs) != set(ours):
            raise ExpungeError(f"{file}: {len(theirs)} tensors change, here {len(ours)}")
        yield Difference(pooled(ours, theirs), case["tolerance"][file]["rel_fro_of_change"])
        yield from _embeddings(case, rounds, embeddings)
    payloads = [stage, *(done.projections.payload() for done in rounds)]
    for payload, epoch in zip(
        payloads, ("uce", *(f"e{n}" for n in range(len(rounds)))), strict=True
    ):
        matrix = case.file("epochs").get(f"M64:{epoch}")
        if matrix is not None:
            ours = {name: payload.change(name, weight) for name, weight in base.items()}
            tolerance = case["tolerance"]["expected_fp64"]["rel_fro_of_change"]
            yield Difference(pooled(ours, _changes({"M": matrix}, base)), tolerance)


def _method(case: Case, model: Model, policy: Policy) -> RECE:
    """The case's settings; a first stage with other prompts makes the edit to start from."""
    stage, params = case["uce_stage"], dict(case["params"])
    embedding = EMBEDDINGS[params.pop("emb_computing")]
    penalty = PENALTIES[params.pop("reg_item")]
    values = dict(
        fidelity="original",
        embedding=embedding,
        regularization=penalty if embedding == "surrogate" else None,
        targets=tuple(case["old_target_concepts"]) if embedding == "target" else (),
        preserve=tuple(case["retain"]),
        **params,
    )
    first = {"preserve": tuple(stage["retain"]), **stage["params"]}
    one_call = configured(
        "rece",
        templates=bool(stage["cli"].get("add_prompts")),
        **values,
        **{f"uce_{key}": value for key, value in first.items()},
    )
    assert isinstance(one_call, RECE)
    ours = [(pair.erase, pair.anchor) for pair in one_call.uce.pairs(policy)]
    theirs = [(pair["erase"], pair["guide"]) for pair in stage["pairs"]]
    if ours == theirs:
        return one_call
    moved = [Concept(target=words, anchor=guide) for words, guide in theirs]
    start = erase(model, moved, "uce", fidelity="original", **first)
    method = configured("rece", start=start, **values)
    assert isinstance(method, RECE)
    return method


def _policy(case: Case) -> Policy:
    """The concepts of the epochs."""
    style = case["uce_stage"]["cli"].get("concept_type") == "art"
    pairs = zip(case["concepts"], case["guides"], strict=True)
    return Policy(
        erase=tuple(
            Concept(target=words, anchor=guide, kind="style" if style else "object")
            for words, guide in pairs
        )
    )


def _changes(theirs: Tensors, base: Tensors) -> Tensors:
    """What is added to the base weights, from whole tensors or from their right factor."""
    if "M" in theirs:
        return {name: weight @ theirs["M"] - weight for name, weight in base.items()}
    return {name: weight.double() - base[name] for name, weight in theirs.items()}


def _embeddings(case: Case, rounds: Sequence[Epoch], kind: str) -> Iterator[Difference]:
    """Adversarial embeddings of every epoch and concept, of the single or the double run."""
    mark = "adv64:" if kind == "adv64" else "adv:"
    theirs = {name: rows for name, rows in case.file("epochs").items() if name.startswith(mark)}
    ours = {
        f"{mark}e{epoch}:c{concept}": rows
        for epoch, done in enumerate(rounds)
        for concept, rows in enumerate(done.adversarial)
    }
    if set(theirs) != set(ours):
        raise ExpungeError(f"{len(theirs)} adversarial embeddings in the case, here {len(ours)}")
    for name, rows in theirs.items():
        yield Difference(pooled(ours, {name: rows}), case["tolerance"][kind]["rel_fro"])
