"""MACE beside its released program: refinement, attention loss, adapters, fusion."""

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor

from conformance.case import (
    Case,
    Difference,
    Tensors,
    loss_difference,
    pooled,
    under,
    weight_changes,
)
from expunge.concepts import Concept
from expunge.edits import Edit, LowRank
from expunge.edits.applied import edited_weights
from expunge.errors import ExpungeError, Unsupported
from expunge.methods import erase
from expunge.methods.mace.adapters import Adapter, fit, layer_norms
from expunge.methods.mace.batches import AdapterBatch, columns
from expunge.methods.mace.closed import fusion
from expunge.models import Condition, Model
from expunge.prior import Prior, moment
from expunge.prior.sums import Metadata

# How closely two single-precision programs agree; twice the difference that the case itself
# reports to a double evaluation, where that is more.
SINGLE = {
    "embedding": 2e-5,
    "noisy_latents": 2e-6,
    "per_layer_norm": 2e-6,
    "loss": 5e-6,
    "losses": 2e-5,  # the embeddings are recomputed
    "gradient_norm": 2e-5,
    "gradients": 2e-5,
    "grad_worst_tensor": 2e-4,
    "lora_update": 1e-3,
    "refined_change": 2e-3,
    "fused_change": 2e-3,
    "fused_fp64_run": 1e-9,
}


def stages(case: Case) -> Iterator[Difference]:
    """Whatever stage of the program the case has numbers of."""
    checks = {"grad": loss, "refined": training, "fused": fusing}
    present = {name.partition("/")[0] for name in case.file("expected")}
    if not present & checks.keys():
        raise Unsupported(f"none of {', '.join(checks)} is in this case")
    for name in sorted(present & checks.keys()):
        yield from checks[name](case)


def refinement(case: Case) -> Iterator[Difference]:
    """The refined weights, in single and in double precision."""
    model = case.model()
    priors = {role: _cached(case, model, name) for role, name in case["caches"].items() if name}
    sentences = [[(pair["old"], pair["new"]) for pair in pairs] for pairs in case["pairs"]]
    concepts = [(entry["concept"], entry["mapping"]) for entry in case["concepts"]]
    all_words = case["variant"] == "all_words"
    edit = _refined(case, model, concepts, sentences, **priors, all_words=all_words)
    yield from weight_changes(case, model, edit)


def loss(case: Case) -> Iterator[Difference]:
    """Attention norms, loss and gradients of one step."""
    model, inputs, expected = case.model(), case.file("inputs"), case.file("expected")
    adapter = Adapter(model, under(inputs, "base"), _factors(case, inputs, "lora"))
    prompt, words = case["prompts"]["prompt"], case["prompts"]["concept"]
    marks = columns(model, prompt, words)[None]
    yield Difference(float((marks != inputs["concept_positions"]).sum()), 0.0)
    yield _single(case, "embedding", model.encode([prompt]), inputs["embedding"])
    noisy = model.process.mix(inputs["latents"], inputs["noise"], inputs["timesteps"])
    yield _single(case, "noisy_latents", noisy, inputs["noisy_latents"])
    batch = AdapterBatch(
        inputs["noisy_latents"],
        inputs["timesteps"],
        Condition(inputs["embedding"]),
        marks,
        _masks(case, inputs, "mask", noisy),
    )
    maps = adapter.attention(batch)
    yield Difference(float(list(maps) != case["layer_order"]), 0.0)
    norms = layer_norms(maps, batch, nearest=True)[:, 0]
    yield _single(case, "per_layer_norm", norms.detach(), expected["per_layer_norm"])
    norms.sum().backward()  # type: ignore[no-untyped-call]
    scalars = case["scalars"]
    yield loss_difference([norms.sum().item()], [scalars["loss"]], _tolerance(case, "loss"))
    theirs = _factors(case, expected, "grad")
    ours = {key: w.grad for key, w in adapter.weights.items() if w.grad is not None}
    without = {_key(name) for name in case.get("no_gradient") or ()}
    yield Difference(float(len(without ^ (adapter.weights.keys() - ours.keys()))), 0.0)
    yield Difference(pooled(ours, theirs), _tolerance(case, "gradients"))
    worst = max(pooled({k: ours[k]}, {k: theirs[k]}) for k in theirs)
    yield Difference(worst, _tolerance(case, "grad_worst_tensor"))
    norm = torch.stack([gradient.norm() for gradient in ours.values()]).norm()
    theirs_norm = scalars["gradient_norm_before_clipping"]
    yield loss_difference([float(norm)], [theirs_norm], _tolerance(case, "gradient_norm"))


def training(case: Case) -> Iterator[Difference]:
    """The refined weights, and a few steps of an adapter for each concept on top of them."""
    model, inputs, expected = case.model(), case.file("inputs"), case.file("expected")
    listed, params = case["prompts"], case["params"]
    concepts = list(zip(listed["concepts"], listed["mapping"], strict=True))
    sentences = [
        [(phrase, phrase.replace(words, mapping)) for phrase in listed["phrases"][words]]
        for words, mapping in concepts
    ]
    priors = {
        role: _prior(model, inputs[f"C_{role}"], len(listed[f"{role}_captions"]))
        for role in ("prior", "domain")
        if listed.get(f"{role}_captions")
    }
    edit = _refined(case, model, concepts, sentences, **priors)
    refined = under(expected, "refined")
    theirs = {name: weight - model.base_weight(name) for name, weight in refined.items()}
    yield Difference(pooled(_changes(model, edit), theirs), _tolerance(case, "refined_change"))
    for number, (words, _) in enumerate(concepts):
        steps = [(at, s) for at, s in enumerate(case["schedule"]) if s["concept"] == number]
        start = _factors(case, inputs, f"lora{number}/initial")
        adapter, batches = Adapter(model, refined, start), []
        for at, step in steps:
            marks = columns(model, step["prompt"], words)[None]
            yield Difference(float((marks != inputs[f"step{at}/concept_positions"]).sum()), 0.0)
            latents = inputs[f"step{at}/noisy_latents"]
            timestep = torch.tensor([step["timestep"]])
            condition = model.condition([step["prompt"]])
            masks = _masks(case, inputs, f"step{at}/mask", latents)
            batches.append(AdapterBatch(latents, timestep, condition, marks, masks))
        losses = fit(adapter, batches, params["lr"], nearest=True)
        wanted = [step["loss"] for _, step in steps]
        yield loss_difference(losses, wanted, _tolerance(case, "losses"))
        end = _factors(case, expected, f"lora{number}/final")
        update = {key: end[key] - start[key] for key in end}
        ours = {key: weight.detach() - start[key] for key, weight in adapter.weights.items()}
        yield Difference(pooled(ours, update), _tolerance(case, "lora_update"))


def fusing(case: Case) -> Iterator[Difference]:
    """The fused weights, in single and in double precision."""
    model, inputs, params = case.model(), case.file("inputs"), case["params"]
    model.text_encoders[0].network.double()
    listed = case["prompts"]
    refined = under(inputs, "refined")
    identity = torch.eye(model.text_width, dtype=torch.float64)
    base = _base(model, refined)
    change = LowRank(
        {name: weight.double() - base[name] for name, weight in refined.items()},
        dict.fromkeys(refined, identity),
    )
    adapters = [
        _low_rank(_factors(case, inputs, f"lora{number}"), refined)
        for number in range(len(listed["concepts"]))
    ]
    captions = moment(model, listed["prior_captions"])
    if listed.get("domain_captions"):
        captions = captions + params["preserve_weight"] * moment(model, listed["domain_captions"])
    kept = params["fuse_preserve_scale"] * captions
    own = [moment(model, listed["phrases"][words]) for words in listed["concepts"]]
    fused = fusion(change, adapters, own, kept, params["lamb"])
    ours = {name: fused.change(name, weight) for name, weight in base.items()}
    for file, tolerance in (("expected", "fused_change"), ("expected_fp64", "fused_fp64_run")):
        weights = under(case.file(file), "fused")
        theirs = {name: weight.double() - base[name] for name, weight in weights.items()}
        if theirs:
            yield Difference(pooled(ours, theirs), _tolerance(case, tolerance))


def _refined(
    case: Case,
    model: Model,
    concepts: Sequence[tuple[str, str]],
    sentences: Sequence[Sequence[tuple[str, str]]],
    **settings: Any,
) -> Edit:
    """One edit a concept, because each has its own sentences; their sum is the joint one."""
    known = ("lamb", "train_preserve_scale", "preserve_weight")
    params = {key: case["params"][key] for key in known}
    edits = [
        erase(
            model,
            Concept(target=words, anchor=mapping),
            "mace",
            fidelity="original",
            rank=0,
            contexts=tuple(_context(words, mapping, *pair) for pair in pairs),
            **params,
            **settings,
        )
        for (words, mapping), pairs in zip(concepts, sentences, strict=True)
    ]
    return reduce(add, edits)


def _context(words: str, mapping: str, old: str, new: str) -> str:
    """The sentence that gives one prompt with the concept's words, and the other without."""
    context = old.replace(words, "{}")
    if context.count("{}") != 1 or context.format(mapping) != new:
        raise ExpungeError(f"{old!r} and {new!r} aren't one sentence with {words!r} replaced")
    return context


def _cached(case: Case, model: Model, name: str) -> Prior:
    """The prior of another case, made from its captions."""
    other = Case(case.folder.parent / name, case.models)
    return _prior(model, other.file("mat")["C"], len(other["captions"]))


def _prior(model: Model, total: Tensor, count: int) -> Prior:
    metadata = Metadata(
        text_encoder=model.text_fingerprint(),
        prompts=None,
        count=count,
        positions=model.window,
        versions={},
    )
    return Prior(total.double(), metadata)


def _changes(model: Model, edit: Edit) -> dict[str, Tensor]:
    edited = edited_weights(model, edit.components, edit.names)
    base = _base(model, edit.names)
    return {name: weight - base[name] for name, weight in edited.items() if weight is not None}


def _base(model: Model, names: Sequence[str] | Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: model.base_weight(name).double() for name in names}


def _factors(case: Case, tensors: Tensors, group: str) -> dict[str, Tensor]:
    if case["params"].get("lora_scale", 1.0) != 1.0:
        raise Unsupported("an adapter has no scale of its own")
    return {_key(name): tensor for name, tensor in under(tensors, group).items()}


def _key(name: str) -> str:
    path, _, side = name.rpartition(".lora_")
    return f"{side}:{path}.weight"


def _low_rank(factors: Tensors, names: Mapping[str, Tensor]) -> LowRank:
    up, down = ({name: factors[f"{side}:{name}"] for name in names} for side in ("up", "down"))
    return LowRank(up, down)


def _masks(case: Case, inputs: Tensors, name: str, latents: Tensor) -> Tensor:
    """``[1, height, width]``; without masks every pixel counts."""
    if case["params"]["use_mask"]:
        return inputs[name][0]
    return torch.ones(1, *latents.shape[2:])


def _tolerance(case: Case, name: str) -> float:
    return max(SINGLE[name], 2 * float(case["tolerance"].get(name, 0.0)))


def _single(case: Case, name: str, ours: Tensor, theirs: Tensor) -> Difference:
    return Difference(pooled({name: ours}, {name: theirs}), _tolerance(case, name))
