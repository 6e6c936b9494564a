"""Concept inversion beside its released programs."""

from collections.abc import Iterator
from typing import Any

import torch

from conformance.attacked import answer, attacked, distance, moved, rule_of, target_of
from conformance.case import Case, Difference, Tensors, loss_difference
from expunge import erase
from expunge.attacks import configured
from expunge.attacks.concept_inversion import ConceptInversion, Look, Released
from expunge.attacks.points import Points, noisy
from expunge.concepts import Concept
from expunge.models import Model
from expunge.models.text import TextInput


def steps(case: Case) -> Iterator[Difference]:
    """Losses, gradients and vectors of a run on given draws."""
    expected, params, tolerance = case.file("expected"), case["params"], case["tolerance"]
    search, base = _search(case), exact(case.model())
    start = search.descent["vectors"].detach().clone()
    yield Difference(distance(start[0], expected["embedding_initial"]), 1e-7)
    losses, each = [], params["gradient_accumulation"]
    with search.target.deployed():
        for number in range(params["updates"]):
            micros = range(number * each, (number + 1) * each)
            looks = [_look(case, search, base, micro) for micro in micros]
            losses += [look.loss for look in looks]
            gradient = sum(look.gradient for look in looks) / len(looks)
            near = distance(torch.as_tensor(gradient)[0], expected[f"step{number}/grad"])
            yield Difference(near, tolerance["grad_rel"])
            search.advance(looks)
            theirs = expected[f"step{number}/embedding"]
            ours = search.descent["vectors"].detach()[0]
            yield moved(ours, theirs, start[0], tolerance["update_rel"])
    yield loss_difference(losses, expected["losses"].tolist(), tolerance["loss_rel"])


def exact(model: Model) -> Model:
    """The model in double precision: a few steps of AdamW magnify the text encoder's rounding."""
    for network in model.networks.values():
        network.double()
    return model


def _look(case: Case, search: Released, base: Model, micro: int) -> Look:
    given = {
        key.split("/")[1]: one.double() if one.is_floating_point() else one
        for key, one in case.file("inputs").items()
        if key.startswith(f"micro{micro}/")
    }
    ids, new = given["input_ids"], case["params"]["new_token_id"]
    at = torch.stack([(row == new).nonzero()[:, 0] for row in ids])
    text = TextInput(ids.where(ids != new, 0), at=at)
    if search.attack.safety_concept:
        return search.look_window(text, given["latents"], given["noise"], given["timesteps"])
    return search.look(text, _points(case, search, base, given))


def _points(case: Case, search: Released, base: Model, given: Tensors) -> Points:
    where = noisy(search.target, given["latents"], given["noise"], given["timesteps"])
    if not search.target.guarded:
        return where
    scale = search.target.sampling.guidance_scale
    without, towards = (
        answer(base, where.latents, where.time, [prompt])
        for prompt in ("", case["prompts"]["safety_concept"])
    )
    return where._replace(wanted=without + scale * (towards - without))


def _search(case: Case) -> Released:
    params, prompts = case["params"], case["prompts"]
    settings: dict[str, Any] = {
        "lr": params["learning_rate_argument"],
        "batch_size": params["batch_size"] * params["gradient_accumulation"],
        "weight_decay": params["weight_decay"],
        "begins_as": params["initializer_token"],
    }
    if "sld_threshold" in params:
        settings |= {"safety_concept": prompts["safety_concept"], "safety": rule_of(params)}
    attack = configured("concept-inversion", fidelity="original", **settings)
    assert isinstance(attack, ConceptInversion)
    model, edit = exact(attacked(case)), None
    if params["guidance_scale"] and "sld_threshold" not in params:
        edit = erase(model, Concept(target=prompts["safety_concept"]), "negative-prompt")
    clean = case.file("inputs")["micro0/latents"].double()
    guidance = params["guidance_scale"] or 7.5
    search = attack.begin(target_of(model, "art", clean, edit, guidance), [0], 0)
    assert isinstance(search, Released)
    return search
