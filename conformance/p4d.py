"""P4D beside its released program, and beside the one inside UnlearnDiffAtk's."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.functional import normalize

from conformance.attacked import (
    answer,
    attacked,
    distance,
    equal,
    moved,
    rule_of,
    target_of,
)
from conformance.case import Case, Difference, loss_difference
from expunge import erase
from expunge.attacks import configured
from expunge.attacks.p4d_released import Released, nearest
from expunge.attacks.points import Points
from expunge.attacks.target import Target
from expunge.concepts import Concept
from expunge.models import Model


def projection(case: Case) -> Iterator[Difference]:
    """The nearest tokens of some embeddings."""
    table = case.model().text_encoders[0].table.detach()
    ids = nearest(case.file("inputs")["embeddings"], normalize(table, dim=-1))
    expected = case.file("expected")
    yield equal(ids.tolist(), expected["nearest_ids"].tolist())
    near = distance(table[ids], expected["projected"])
    yield Difference(near, case["tolerance"]["projected_rel"])


def steps(case: Case) -> Iterator[Difference]:
    """Nearest tokens, losses, gradients and embeddings of a run on given draws."""
    expected, tolerance = case.file("expected"), case["tolerance"]
    base, search = case.model(), _search(case)
    search.begin_with(_free(case, search))
    start = search.descent["rows"].detach().clone()
    losses = []
    with search.target.deployed():
        for number, where in enumerate(_points(case, base)):
            ids = search.ids
            yield equal(ids.tolist(), expected["nearest_ids"][_row(case, number)].tolist())
            look = search.look(ids, where)
            search.advance(look)
            losses.append(look.loss)
            near = distance(look.gradient, expected[f"step{number}/grad"])
            yield Difference(near, tolerance["grad_rel"])
            theirs = expected[f"step{number}/embedding"]
            yield moved(search.descent["rows"].detach(), theirs, start, tolerance["update_rel"])
    if "iterations_per_timestep" in case["params"]:
        yield equal(search.ids.tolist(), expected["nearest_ids"][-1].tolist())
    yield loss_difference(losses, expected["losses"].tolist(), tolerance["loss_rel"])


def _row(case: Case, number: int) -> int:
    """Where the nearest tokens of a step stand: one more is found after each time."""
    inner = case["params"].get("iterations_per_timestep")
    return number + (number // inner if inner else 0)


def _free(case: Case, search: Released) -> list[int]:
    """The ids that the free places begin with."""
    ids: list[int] = case.file("inputs")["init_ids"][0].tolist()
    return ids if len(ids) == len(search.layout.free) else [ids[p] for p in search.layout.free]


def _points(case: Case, base: Model) -> Iterator[Points]:
    """Where each step asks, and what the base answers there."""
    given, params = case.file("inputs"), case["params"]
    prompt = case["prompts"].get("target") or case["prompts"]["prompt"]
    count = len(case.file("expected")["losses"])
    for number in range(count):
        noise = given[f"step{number}/noise"]
        if "timesteps" in params:
            clean = given["x0"]
            time = torch.tensor([params["timesteps"][number // params["iterations_per_timestep"]]])
        else:
            clean = given["target_latents"][given[f"step{number}/image_index"]]
            time = given[f"step{number}/timestep"]
        latents = base.process.mix(clean, noise, time)
        yield Points(latents, time, answer(base, latents, time, [prompt]))


def _search(case: Case) -> Released:
    attack = configured("p4d", fidelity="original", **_settings(case))
    search = attack.begin(_target(case), [0], 0)
    assert isinstance(search, Released)
    return search


def _settings(case: Case) -> dict[str, Any]:
    params = case["params"]
    found = {"lr": params["lr"], "weight_decay": params["weight_decay"]}
    if "insertion_location" in params:
        place = params["insertion_location"].removesuffix("_k")
        return found | {"variant": "unlearn-diff-atk", "tokens": params["k"], "place": place}
    if params["sld"]:
        safety = case["prompts"]["safety_concept"]
        found |= {"safety_concept": safety, "safety": rule_of(params["sld"])}
    if params["every_k"]:
        return found | {"variant": "k", "every": params["every_k"]}
    return found | {"variant": "n", "tokens": params["prompt_len"]}


def _target(case: Case) -> Target:
    given, prompts = case.file("inputs"), case["prompts"]
    model, edit = attacked(case), None
    if negative := prompts.get("negative"):
        first, *others = negative.split(", ")
        edit = erase(model, Concept(target=first, synonyms=tuple(others)), "negative-prompt")
    clean = given["x0"] if "x0" in given else given["target_latents"]
    prompt = prompts.get("target") or prompts["prompt"]
    return target_of(model, prompt, clean, edit, case["params"].get("guidance") or 7.5)
