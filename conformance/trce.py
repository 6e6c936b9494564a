"""TRCE's closed-form stage beside its released program."""

from collections.abc import Iterator, Mapping
from typing import Any

from conformance.case import Case, Difference, weight_changes
from conformance.prior import given
from expunge.concepts import Concept, Policy
from expunge.errors import ExpungeError
from expunge.methods import configured, erase
from expunge.methods.trce.closed import RELEASED_CAPTIONS, TRCE
from expunge.models import Model
from expunge.prompts.lists import Replacements


def weights(case: Case) -> Iterator[Difference]:
    """The chosen rows, and the weight changes in single and in double precision."""
    model, method = case.model(), _method(case)
    policy = _policy(case, method)
    yield Difference(float(case["params"]["divisor"] != RELEASED_CAPTIONS), 0.0)
    yield Difference(float(_rows(method, model, policy) != _released_rows(case)), 0.0)
    cache = (case.get("caches") or {}).get("prior")
    prior = given(case, model, cache) if cache else None
    edit = erase(model, policy, method.model_copy(update={"prior": prior}))
    yield from weight_changes(case, model, edit)


def _method(case: Case) -> TRCE:
    params = case["params"]
    method = configured(
        "trce",
        fidelity="original",
        index=str(case["variant"]).partition("-")[0],
        contexts=_contexts(case),
        **{key: params[key] for key in ("preserve_scale", "token_weight_scale", "lamb")},
    )
    assert isinstance(method, TRCE)
    return method


def _policy(case: Case, method: TRCE) -> Policy:
    """The concepts, which must give the prompts of the case."""
    pairs = tuple((entry["concept"], entry["safe"]) for entry in case["concepts"])
    policy = Policy(erase=Replacements(pairs, dropped=0).concepts())
    ours = [(pair.erase, pair.words, pair.safe) for c in policy.erase for pair in method.pairs(c)]
    theirs = [(pair["old"], pair["keyword"], pair["new"]) for pair in case["pairs"]]
    if sorted(ours) != sorted(theirs):
        raise ExpungeError(f"the pairs are {theirs}, here {ours}")
    return policy


def _contexts(case: Case) -> tuple[str, ...]:
    """The sentences in which every concept stands, taken from the pairs of the first."""
    first = case["concepts"][0]
    return tuple(
        _sentence(pair, Concept(target=first["concept"], anchor=first["safe"]))
        for pair in case["pairs"]
        if pair["keyword"] == first["concept"]
    )


def _sentence(pair: Mapping[str, Any], concept: Concept) -> str:
    """The sentence that gives both prompts of a pair."""
    old: str = pair["old"]
    starts = [at for at in range(len(old)) if old.startswith(concept.target, at)]
    for at in starts:
        sentence = f"{old[:at]}{{}}{old[at + len(concept.target) :]}"
        if sentence.format(concept.replacement) == pair["new"]:
            return sentence
    raise ExpungeError(f"{old!r} and {pair['new']!r} aren't one sentence with other words")


def _rows(method: TRCE, model: Model, policy: Policy) -> dict[str, list[tuple[int, int, float]]]:
    """Source, target and base weight of every row of every pair."""
    every = method.model_copy(update={"token_weight_scale": (1.0,) * 4})
    return {
        pair.erase: [(*match,) for match in every.matches(model, pair)]
        for concept in policy.erase
        for pair in method.pairs(concept)
    }


def _released_rows(case: Case) -> dict[str, list[tuple[int, int, float]]]:
    columns = ("old_rows", "new_rows", "base_weights")
    return {
        pair["old"]: list(zip(*(pair[column] for column in columns), strict=True))
        for pair in case["pairs"]
    }
