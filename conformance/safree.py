"""SAFREE beside its released program."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from conformance.case import Case, Difference, pooled
from conformance.sld import latents
from expunge.edits.reading import Reader
from expunge.edits.safree import Safree
from expunge.edits.safree_features import Band, damped
from expunge.edits.safree_text import Rule, masked
from expunge.methods import configured, erase
from expunge.methods.safree import SAFREE

PRESETS = {"default": "default", "artists-": "artist"}
"""Our presets of the case's categories."""
BANDS: Mapping[str, Band] = {"low": "low", "high": "high"}


def text(case: Case) -> Iterator[Difference]:
    """Projections, distances, triggers, the filtered embedding and for how long it is used."""
    model, prompts, expected = case.model(), case["prompts"], case.file("expected")
    edit = erase(
        model,
        prompts["concept_space"],
        "safree",
        fidelity="original",
        alpha=case["params"]["alpha"],
        most=case["params"]["up_t"],
    )
    guard = edit.components[0].payload
    assert isinstance(guard, Safree)
    rows, tokens = model.encode([prompts["prompt"]])[0], model.tokens(prompts["prompt"])
    reader = Reader(model)
    copies = reader.whole([tokens, *masked(tokens)])
    reader.close()
    seen = guard.view(rows, copies[1:], copies[0])
    ours = {
        "concept_pooled": guard.concept,
        "masked_pooled": copies[1:],
        "projector_concept": guard.rule.projector(guard.concept),
        "projector_input": guard.rule.projector(copies[1:]),
        "distances": seen.distances,
        "text": rows,
        "filtered": seen.filtered,
        "projected_all": seen.projected,
    }
    for name, tensor in ours.items():
        most = case["tolerance"][f"{name}_rel"]
        yield Difference(pooled({"": tensor}, {"": expected[name]}), most)
    same = torch.equal(seen.trigger, expected["trigger"].bool())
    yield Difference(float(not same), 0.0)
    yield Difference(abs(seen.moved - case["scalars"]["beta"]), case["tolerance"]["beta_abs"])
    yield from _durations(case, guard.rule, seen.moved)


def _durations(case: Case, rule: Rule, moved: float) -> Iterator[Difference]:
    """The last filtered step of the case's prompt in both categories, and of a table of moves."""
    for kind, number in case["scalars"]["adjusted"].items():
        own = _rule("artists-" if "artists-" in kind else "default", rule)
        yield Difference(abs(own.last_step(moved) - number), 0.0)
    rules = [_rule(category, rule) for category in PRESETS]
    for move, numbers in case["scalars"]["f_beta_table"].items():
        found = [own.last_step(float(move)) for own in rules]
        yield Difference(float(found != numbers[: len(found)]), 0.0)


def _rule(category: str, given: Rule) -> Rule:
    method = configured("safree", fidelity="original", preset=PRESETS[category])
    assert isinstance(method, SAFREE)
    return method.rule()._replace(most=given.most)


def sampling(case: Case) -> Iterator[Difference]:
    """Latents of a whole run of the pipeline with the guard applied."""
    params, prompts, model = case["params"], case["prompts"], case.model()
    values: dict[str, Any] = {
        "alpha": params["alpha"],
        "most": params["up_t"],
        "self_validation": params["self_validation"],
        "negative_prompt": params["negative_prompt_used"],
    }
    edit = erase(model, prompts["concept_space"], "safree", fidelity="original", **values)
    with edit.applied(model):
        found = latents(model, case, prompts["prompt"])[-1]
    theirs = case.file("expected")["latent"]
    yield Difference(pooled({"": found}, {"": theirs}), case["tolerance"]["latent_rel"])


def filters(case: Case) -> Iterator[Difference]:
    """Damped features of the safe branch, and of all where no branches are compared."""
    given, expected = case.file("inputs"), case.file("expected")
    for name, theirs in expected.items():
        band, size, scale = name.split("/")
        _, safe, original = features = given[size][:, None]
        if band == "freeu":
            ours = damped(given[size], given[size], float(scale), "plain", replaced=True)
        else:
            changed = damped(safe, original, float(scale), BANDS[band], replaced=True)
            ours = torch.cat([features[0], changed, original])
        yield Difference(pooled({"": ours}, {"": theirs}), case["tolerance"]["max_rel"])
