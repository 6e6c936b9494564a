"""Ring-A-Bell, and RECE's variant of it, beside their released programs."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from conformance.attacked import distance, target_of
from conformance.case import Case, Difference, loss_difference
from expunge.attacks import configured
from expunge.attacks.concept_vector import Pairs, concept_vector
from expunge.attacks.genetic import Crossing, Mutation, crossed, mutated
from expunge.attacks.ring_a_bell import Released, RingABell
from expunge.attacks.ring_a_bell_rows import RingABellRows

FITNESS = 1e-5
"""How closely fitness agrees where a case doesn't say."""


def _pairs(case: Case) -> Pairs:
    return [(one, other) for one, other in case["prompts"]["pairs"]]


def vector(case: Case) -> Iterator[Difference]:
    """The concept's vector."""
    ours = concept_vector(case.model(), _pairs(case))
    theirs = case.file("expected")["vector"]
    yield Difference(distance(ours, theirs), case["tolerance"]["vector_rel"])


def _search(case: Case, **settings: Any) -> Released:
    """A search towards the case's prompt and vector."""
    params, model, given = case["params"], case.model(), case.file("inputs")
    attack = configured(
        "ring-a-bell", fidelity="original", tokens=params["K"], strength=params["eta"], **settings
    )
    assert isinstance(attack, RingABell)
    prompt = case["prompts"]["prompt"]
    search = attack.begin(target_of(model, prompt, torch.zeros(1, *model.latent_shape)), [0], 0)
    assert isinstance(search, Released)
    search.wanted = model.encode([prompt])[0] + params["eta"] * given["vector"]
    return search


def fitness(case: Case) -> Iterator[Difference]:
    """The vector, and the fitness of some prompts."""
    given, tolerance = case.file("inputs"), case["tolerance"]
    ours = concept_vector(case.model(), _pairs(case))
    yield Difference(distance(ours, given["vector"]), tolerance["vector_rel"])
    with torch.no_grad():
        found = _search(case).fitness(given["population"])
    theirs = case.file("expected")["fitness"].tolist()
    yield loss_difference(found.tolist(), theirs, tolerance["fitness_rel"])


def generations(case: Case) -> Iterator[Difference]:
    """Target, fitness and populations of a search with given choices."""
    given, expected, tolerance = case.file("inputs"), case.file("expected"), case["tolerance"]
    params = case["params"]
    search = _search(case, population=params["population"], generations=params["generations"])
    yield Difference(distance(search.wanted, expected["target"]), tolerance["target_rel"])
    search.population = given["population_initial"]
    for number, choices in enumerate([*case["schedule"], None][: params["generations"]]):
        at = f"gen{number}/"
        with torch.no_grad():
            losses = search.fitness(search.population)
        theirs = expected[f"{at}fitness"].tolist()
        yield loss_difference(losses.tolist(), theirs, tolerance.get("fitness_rel", FITNESS))
        # Clones have the same fitness; the original's order of them is arbitrary.
        order = expected[f"{at}order"]
        worse = losses[order].diff().min() < -FITNESS * losses.max()
        yield Difference(float(worse), 0.0)
        search.keep(losses, order)
        if choices is None or f"{at}after_crossover" not in expected:
            break
        children = crossed(search.population, _crossing(choices["crossover"], params))
        yield _same(children, expected[f"{at}after_crossover"])
        search.population = mutated(children, _mutation(choices["mutation"], params))
        yield _same(search.population, expected[f"{at}after_mutation"])
    yield _same(search.population, expected["population_final"])


def _same(ours: torch.Tensor, theirs: torch.Tensor) -> Difference:
    return Difference(float(not torch.equal(ours, theirs)), 0.0)


def _crossing(drawn: list[Mapping[str, float]], params: Mapping[str, Any]) -> Crossing:
    return Crossing(
        torch.tensor([one["u"] < params["crossover_rate"] for one in drawn]),
        torch.tensor([int(one.get("partner", 0)) for one in drawn]),
        torch.tensor([int(one.get("point", 1)) for one in drawn]),
    )


def _mutation(drawn: list[Mapping[str, float]], params: Mapping[str, Any]) -> Mutation:
    return Mutation(
        torch.tensor([one["u"] < params["mutation_rate"] for one in drawn]),
        torch.tensor([int(one.get("position", 1)) for one in drawn]),
        torch.tensor([int(one.get("value", 0)) for one in drawn]),
    )


def rows(case: Case) -> Iterator[Difference]:
    """RECE's vectors with some batch sizes, and the rows that are drawn from."""
    expected, tolerance, params = case.file("expected"), case["tolerance"], case["params"]
    model, pairs = case.model(), _pairs(case)
    for size in params["batch_sizes"]:
        attack = _rows_attack(params["eta"], size)
        near = distance(attack.vector(model, pairs), expected[f"vector_batch{size}"])
        yield Difference(near, tolerance[f"vector_batch{size}_rel"])
    attack = _rows_attack(params["eta"], params["shipped_batch_size"])
    shipped = attack.vector(model, pairs)
    for number, prompt in enumerate(case["prompts"]["prompts"]):
        ours = attack.rows(model, prompt, shipped).rows[0]
        near = distance(ours, expected[f"embedding{number}"])
        yield Difference(near, tolerance["embedding_rel"])


def _rows_attack(strength: float, size: int) -> RingABellRows:
    attack = configured("ring-a-bell-rows", fidelity="original", strength=strength, batch_size=size)
    assert isinstance(attack, RingABellRows)
    return attack
