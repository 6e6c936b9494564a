"""ESD beside its released programs."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from conformance.case import (
    Case,
    Difference,
    compared,
    conditions,
    loss_difference,
    pooled,
)
from expunge.errors import ExpungeError, Unsupported
from expunge.formats.compvis import diffusers_name
from expunge.method.batch import Batch
from expunge.method.student import Student
from expunge.methods import configured
from expunge.methods.esd.method import ESD
from expunge.methods.esd.released import SELECTIONS, EsdProgram, parameters
from expunge.models import Model, load
from expunge.training.loop import fit

EMBEDDINGS = 2e-5
"""How closely two correct text encoders agree in single precision."""


def _esd(case: Case) -> tuple[ESD, EsdProgram]:
    """The released program with the case's settings.

    Raises:
        Unsupported: there is no such program, or none for this family of models.
    """
    variant, _, family = str(case["variant"]).partition(" ")
    if variant not in SELECTIONS or family.startswith("sdxl"):
        raise Unsupported(f"esd: no program {case['variant']}")
    params = case.get("params") or {}
    known = {key: params[key] for key in ("negative_guidance", "lr") if key in params}
    for key in ("start_guidance", "guidance_scale"):
        if key in params:
            known["start_guidance"] = params[key]
    if case.get("train_method"):
        known["train_method"] = case["train_method"]
    method = configured(
        "esd",
        fidelity="original",
        variant=variant,
        erase_from=case.get("erase_from") or (),
        num_inference_steps=params.get("ddim_steps") or params.get("num_inference_steps") or 50,
        **known,
    )
    assert isinstance(method, ESD)
    assert method.program
    return method, method.program


def _encoded(case: Case, model: Model) -> Iterator[Difference]:
    """Our conditions, where the case has its own; from then on those are used."""
    if given := conditions(case.file("inputs")):
        ours = model.condition(list(given))
        for at, theirs in enumerate(given.values()):
            yield Difference(pooled({"": ours.rows[at]}, {"": theirs.rows[0]}), EMBEDDINGS)
            if ours.pooled is not None and theirs.pooled is not None:
                near = pooled({"": ours.pooled[at]}, {"": theirs.pooled[0]})
                yield Difference(near, EMBEDDINGS)
    model.remember(given)


def _stop(draw: Mapping[str, Any]) -> tuple[str, int]:
    """The name that a program gives its random step, and the step."""
    key = "i" if "i" in draw else "k"
    return key, int(draw[key])


def denoising(case: Case) -> Iterator[Difference]:
    """Latents of the partial denoising."""
    (_, program), model = _esd(case), case.model()
    yield from _encoded(case, model)
    student = Student(model, model.select("all"))
    noise, expected = case.file("inputs")["initial_noise"], case.file("expected")
    for draw in case["results"]:
        key, stop = _stop(draw)
        drawn = case["prompt"]
        latents = program.latents(student, drawn, drawn, noise, stop, draw["scale"])
        theirs = expected[f"{key}{stop}_s{draw['scale']:g}"]
        yield Difference(
            pooled({"latents": latents}, {"latents": theirs}), case["tolerance"]["rel_fro"]
        )


def _prompts(case: Case) -> tuple[str, str]:
    """The concept, and the prompt that is trained on."""
    return case["concept"], case.get("erase_from") or case["concept"]


def _batch(program: EsdProgram, model: Model, case: Case, latents: Tensor, timestep: int) -> Batch:
    return {
        "latents": latents,
        "timestep": torch.tensor([int(timestep)]),
        **program.conditions(model, *_prompts(case)),
    }


def step(case: Case) -> Iterator[Difference]:
    """Loss and gradients of one step, by every parameter that the case has a gradient of."""
    (method, program), model = _esd(case), case.model()
    yield from _encoded(case, model)
    expected, tolerance = case.file("expected"), case["tolerance"]
    student = Student(model, [*expected, *case.file("fingerprints")])
    latents, timestep = case.file("inputs")["x_t"], case["params"]["timestep"]
    batch = _batch(program, model, case, latents, timestep)
    yield loss_difference(
        [_gradients(method, student, batch)], [case["loss"]], tolerance["loss_rel"]
    )
    yield from _compared_gradients(case, student)


def trained_step(case: Case) -> Iterator[Difference]:
    """Latents, loss and gradients of one step, by the parameters that a program trains."""
    (method, program), model = _esd(case), case.model()
    yield from _encoded(case, model)
    student = _student(case, method, model)
    stored = {*case.file("expected"), *case.file("fingerprints")}
    if stored != set(student.weights):
        raise ExpungeError(f"{len(stored)} parameters train, here {len(student.weights)}")
    (batch,) = _batches(case, program, model)
    yield from _drawn(case, program, student)
    loss, tolerance = _gradients(method, student, batch), case["tolerance"]
    yield loss_difference([loss], case["losses"], tolerance["loss_rel"])
    yield from _compared_gradients(case, student)


def training(case: Case) -> Iterator[Difference]:
    """Losses and weight changes of a few steps on given latents."""
    (method, program), model = _esd(case), case.model()
    yield from _encoded(case, model)
    student = _student(case, method, model)
    yield from _drawn(case, program, student)
    losses = fit(method, student, _batches(case, program, model))
    tolerance = case["tolerance"]
    yield loss_difference(losses, case["losses"], tolerance["losses_rel"])
    ours = student.changes()
    theirs = {n: w - model.base_weight(n) for n, w in case.file("expected").items()}
    yield from compared(ours, case, theirs, tolerance["rel_fro_of_change"])
    if "max_abs" in tolerance:
        worst = max(float((ours[name] - change).abs().max()) for name, change in theirs.items())
        yield Difference(worst, tolerance["max_abs"])


def _student(case: Case, method: ESD, model: Model) -> Student:
    student = Student(model, method.parameters(model))
    if len(student.weights) != case["n_trained"]:
        raise ExpungeError(f"{case['n_trained']} parameters train, here {len(student.weights)}")
    return student


def _batches(case: Case, program: EsdProgram, model: Model) -> list[Batch]:
    inputs = case.file("inputs")
    return [_batch(program, model, case, inputs[s["x_t"]], s["timestep"]) for s in case["steps"]]


def _drawn(case: Case, program: EsdProgram, student: Student) -> Iterator[Difference]:
    """Timesteps and latents of the steps whose noise is given."""
    inputs = case.file("inputs")
    for number, draw in enumerate(case["steps"]):
        if (noise := inputs.get(f"noise:{number}")) is None:
            continue
        _, stop = _stop(draw)
        yield Difference(float(program.timestep(student.model, stop) != draw["timestep"]), 0.0)
        ours = program.latents(student, *_prompts(case), noise, stop)
        theirs = inputs[draw["x_t"]]
        yield Difference(pooled({"": ours}, {"": theirs}), case["tolerance"]["x_t_rel"])


def _gradients(method: ESD, student: Student, batch: Batch) -> float:
    """The loss; its gradients are left at the student's weights."""
    loss = method.loss(student, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item()


def _compared_gradients(case: Case, student: Student) -> Iterator[Difference]:
    ours = {n: w.grad for n, w in student.weights.items() if w.grad is not None}
    tolerance = case["tolerance"]["grads_pooled_rel_fro"]
    yield from compared(ours, case, case.file("expected"), tolerance)


def names(case: Case) -> Iterator[Difference]:
    """Names of the trained parameters, which must agree exactly."""
    for group, methods in case["names"].items():
        program, _, place = group.partition(" on ")
        variant = program.removesuffix("_native")
        if variant not in SELECTIONS:
            raise Unsupported(f"esd: no program {variant}")
        model = load(case.models / (place or str(case["model"]).split()[0]), device="cpu")
        for method, theirs in methods.items():
            if program != variant:
                theirs = [diffusers_name(name) for name in theirs]
            ours = parameters(model, variant, method)
            yield Difference(float(len(set(ours) ^ set(theirs))), 0.0)
