"""SPM beside its released programs: membranes when pictures are drawn, and in training."""

from collections.abc import Iterator
from functools import reduce
from operator import add
from typing import Any

import torch

from conformance.case import Case, Difference, Tensors, loss_difference, pooled
from expunge.concepts import Concept, Policy
from expunge.edits.applied import Applied
from expunge.edits.edit import Edit
from expunge.edits.membranes import Membranes
from expunge.errors import ExpungeError, Unsupported
from expunge.formats import spm
from expunge.method.batch import Batch
from expunge.methods import configured
from expunge.methods.spm.anchors import acting
from expunge.methods.spm.method import SPM
from expunge.methods.spm.student import MembraneStudent
from expunge.models import Condition, Model
from expunge.training.loop import Trainer

OUTPUTS, LOSSES, GRADIENTS, UPDATES, SCORES = 2e-6, 2e-5, 2e-5, 1e-3, 1e-5
"""How closely two correct programs in single precision agree."""


def programs(case: Case) -> Iterator[Difference]:
    """What the case's program is checked with."""
    yield from membranes(case) if "concepts" in case["prompts"] else training(case)


# --- membranes


def membranes(case: Case) -> Iterator[Difference]:
    """How far membranes open for some prompts, and what the UNet and some layers then give."""
    model, given, expected = case.model(), case.file("inputs"), case.file("expected")
    prompts = case["prompts"]["prompts"]
    rows = {prompt: given[f"embedding_{number}"][0] for number, prompt in enumerate(prompts)}
    model.remember({prompt: Condition(own[None]) for prompt, own in rows.items()})
    metrics = {key.split("/")[1] for key in expected if key.startswith("gamma_flat/")}
    for metric in sorted(metrics):
        [gate] = _joined(_loaded(case, model, metric=metric))
        for number, prompt in enumerate(prompts):
            close = gate.closeness(rows[prompt][None], [model.tokens(prompt)])
            theirs = expected[f"gamma_flat/{metric}/{number}"]
            yield Difference(float((close[0] - theirs).abs().max()), SCORES)
    [gate] = _joined(_loaded(case, model))
    for number, prompt in enumerate(prompts):
        opened = gate.opened(rows[prompt][None], [model.tokens(prompt)])
        yield Difference(float((opened[0] - expected[f"gamma/{number}"]).abs().max()), SCORES)
    for rule in sorted({key.split("/")[1] for key in expected if key.startswith("unet/")}):
        yield from _drawn(case, model, rule, expected)


def _loaded(case: Case, model: Model, **settings: Any) -> list[Edit]:
    """The case's files, one for each of its lists of concepts."""
    count = len(case["prompts"]["concepts"])
    files = [case.folder / f"spm_{number}.safetensors" for number in range(count)]
    return [spm.load(file, model, **settings) for file in files]


def _joined(edits: list[Edit]) -> list[Membranes]:
    parts = [part.payload for edit in edits for part in edit.components]
    return [Membranes.joined([part for part in parts if isinstance(part, Membranes)])]


def _drawn(case: Case, model: Model, rule: str, expected: Tensors) -> Iterator[Difference]:
    """Outputs of the UNet, and of single layers for the prompt, with all files at work."""
    base, _, factor = rule.partition("_")
    strength = float(case["params"]["facilitate_factor"]) if factor else 1.0
    if base != "plain":
        edits = _loaded(case, model, rule=base, strength=strength)
        reduce(add, edits).apply(model)
    # The original's own distance from float64: strong membranes magnify rounding in both programs.
    tolerance = max(OUTPUTS, 3 * case["tolerance"].get(f"unet_{rule}", 0.0))
    latents = case.file("inputs")["latents"]
    for number, prompt in enumerate(case["prompts"]["prompts"]):
        condition, ours = model.condition([prompt]), {}
        at = f"{rule}/{number}/"
        with torch.no_grad():
            for name in (name for name in expected if name.startswith(f"unet/{at}")):
                timestep = torch.tensor([int(name.rpartition("/")[2])])
                ours[name] = model.predict(latents, timestep, condition)
            for name in (name for name in expected if name.startswith(f"module/{at}")):
                layer = model.denoiser.get_submodule(name.rpartition("/")[2])
                ours[name] = layer(condition.rows)
        for name, output in ours.items():
            yield Difference(pooled({name: output}, {name: expected[name]}), tolerance)
    if base != "plain":
        Edit(Applied.to(model).components).revert(model)


# --- training


def training(case: Case) -> Iterator[Difference]:
    """Denoising, predictions, losses, gradient and the adapter after some steps."""
    model, given, expected = case.model(), case.file("inputs"), case.file("expected")
    if model.family != "sd":
        raise Unsupported(f"spm: no training of {model.family}")
    prompts = case["prompts"]
    named = ("target", "positive", "neutral", "unconditional")
    model.remember({prompts[key]: Condition(given[f"e_{key}"]) for key in named})
    method, policy = _method(case)
    student = method.student(model, policy, 0)
    first = _adapter(case, model, "adapter_initial", method)
    with torch.no_grad():
        for name, weight in student.weights.items():
            weight.copy_(first[name])
    trainer, records = Trainer(method, student), []
    for number, step in enumerate(case["schedule"]):
        yield Difference(abs(trainer.optimizer.param_groups[0]["lr"] - step["lr"]), 1e-9)
        noise = given[f"step{number}/initial_latents"]
        target = model.condition([prompts["target"]])
        latents = method.denoised_latents(student, noise, target, [step["tau"]])
        timestep = method.timesteps(model, [step["tau"]])
        yield Difference(float(timestep != step["timestep"]), 0.0)
        anchors = target[:0]
        if method.la_strength:
            drawn = given[f"step{number}/anchor_batch"][1::2]
            empty = model.unconditional().rows
            anchors = Condition(acting(drawn, empty, method.anchor_split))
        batch = {
            "turn": torch.tensor(0.0),
            "latents": latents,
            "timestep": timestep,
            "target": target,
            "positive": model.condition([prompts["positive"]]),
            "neutral": model.condition([prompts["neutral"]]),
            "anchors": anchors,
        }
        denoised = {"": expected[f"step{number}/denoised_latents"]}
        yield Difference(pooled({"": latents}, denoised), OUTPUTS)
        if number == 0:
            yield from _first_step(method, student, batch, expected)
        records.append(trainer.step([batch]))
    for term in ("loss", "erase", "anchoring"):
        keys = [f"step{n}/loss/{term}".replace("/loss/loss", "/loss") for n in range(len(records))]
        if keys[0] in case["scalars"]:
            theirs = [case["scalars"][key] for key in keys]
            yield loss_difference([record[term] for record in records], theirs, LOSSES)
    last = _adapter(case, model, f"adapter_after_{len(records)}_steps", method)
    yield _moved(student, first, last)


def _method(case: Case) -> tuple[SPM, Policy]:
    """The method with the case's settings, and its one concept."""
    params, prompts = case["params"], case["prompts"]
    method = configured(
        "spm",
        fidelity="original",
        negative_guidance=params["eta"],
        la_strength=params["la_strength"] if params["action"] == "erase_with_la" else 0.0,
        anchors=params["S"],
        positive=prompts["positive"],
        iterations=params["total_steps"],
        lr=params["base_lr"],
        lr_warmup=params["warmup"],
        lr_cycles=params["cycles"],
        num_inference_steps=params["denoising_steps"],
        start_guidance=params["denoise_guidance"],
        rank=params["rank"],
        alpha=params["alpha"],
    )
    assert isinstance(method, SPM)
    concept = Concept(target=prompts["target"], anchor=prompts["neutral"])
    return method, Policy(erase=(concept,))


def _first_step(
    method: SPM, student: MembraneStudent, batch: Batch, expected: Tensors
) -> Iterator[Difference]:
    """Predictions, and the gradient of every factor."""
    seen = method.predictions(student, batch)
    names = {"anchors": "anchor_on", "frozen_anchors": "anchor_off"}
    for name, ours in seen._asdict().items():
        if (theirs := expected.get(f"step0/pred_{names.get(name, name)}")) is not None:
            yield Difference(pooled({"": ours.detach()}, {"": theirs}), OUTPUTS)
    keys = {spm.key(name): name for name in student.names}
    start, sides = "step0/grad/", {"lora_up.weight": "up", "lora_down.weight": "down"}
    gradients = {}
    for name in (name for name in expected if name.startswith(start)):
        key, _, side = name.removeprefix(start).partition(".")
        gradients[f"{sides[side]}:0:{keys[key]}"] = expected[name].flatten(1)
    method.loss(student, batch)["loss"].backward()  # type: ignore[no-untyped-call]
    ours = {name: weight.grad for name, weight in student.weights.items()}
    found = {name: gradient for name, gradient in ours.items() if gradient is not None}
    if found.keys() != gradients.keys():
        raise ExpungeError(f"{len(gradients)} factors have a gradient, here {len(found)}")
    yield Difference(pooled(found, gradients), GRADIENTS)


def _moved(student: MembraneStudent, first: Tensors, last: Tensors) -> Difference:
    """Distance of the changes that training has made."""
    ours = {name: weight.detach() - first[name] for name, weight in student.weights.items()}
    theirs = {name: last[name] - factor for name, factor in first.items()}
    return Difference(pooled(ours, theirs), UPDATES)


def _adapter(case: Case, model: Model, name: str, method: SPM) -> Tensors:
    """The factors of a file by the names that they have in training."""
    found = spm.read(case.folder / f"{name}.safetensors", model)
    ups = {f"up:0:{n}": up * (method.rank / method.alpha) for n, up in found.up.items()}
    return ups | {f"down:0:{n}": down for n, down in found.down.items()}
