"""ESD beside its four released programs."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from conformance.case import Case, Difference, Tensors, compared, loss_difference, pooled
from expunge.errors import ExpungeError
from expunge.formats.compvis import diffusers_name
from expunge.method.student import Student
from expunge.methods import configured
from expunge.methods.esd.method import ESD
from expunge.methods.esd.released import EsdProgram, parameters
from expunge.models import Model
from expunge.models.loading import quietly
from expunge.models.sdxl import SDXL, packed
from expunge.training.loop import fit


def _esd(case: Case, **values: Any) -> tuple[ESD, EsdProgram]:
    params = case.get("params") or {}
    known = {key: params[key] for key in ("negative_guidance", "start_guidance") if key in params}
    steps = params.get("ddim_steps") or params.get("num_inference_steps") or 50
    method = configured(
        "esd",
        fidelity="original",
        variant=case["variant"],
        erase_from=case.get("erase_from") or (),
        num_inference_steps=steps,
        **known,
        **values,
    )
    assert isinstance(method, ESD)
    assert method.program
    return method, method.program


def _model(case: Case) -> Model:
    """The model that the case names; one of SDXL with the conditions that the original used."""
    if case["variant"] != "diffusers-sdxl":
        return case.model()
    with quietly():
        from diffusers import StableDiffusionXLPipeline

        model = SDXL(StableDiffusionXLPipeline.from_pretrained(case.models / case["model"]))
    given = case.file("inputs")
    prompts = [key.removeprefix("emb:") for key in given if key.startswith("emb:")]
    model.remember({p: packed(given[f"emb:{p}"], given[f"pooled:{p}"]) for p in prompts})
    return model


def _stop(draw: Mapping[str, Any]) -> tuple[str, int]:
    """The name that a program gives its random step, and the step."""
    key = "i" if "i" in draw else "k"
    return key, int(draw[key])


def denoising(case: Case) -> Iterator[Difference]:
    """Latents of the partial denoising."""
    (_, program), model = _esd(case), _model(case)
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


def _batch(
    program: EsdProgram, model: Model, case: Case, latents: Tensor, timestep: int
) -> Tensors:
    return {
        "latents": latents,
        "timestep": torch.tensor([timestep]),
        **program.embeddings(model, case["concept"], case.get("erase_from") or case["concept"]),
    }


def step(case: Case) -> Iterator[Difference]:
    """Loss and gradients of one step."""
    (method, program), model = _esd(case), _model(case)
    expected = case.file("expected")
    student = Student(model, [*expected, *case.file("fingerprints")])
    latents, timestep = case.file("inputs")["x_t"], case["params"]["timestep"]
    loss = method.loss(student, _batch(program, model, case, latents, timestep))
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = {n: w.grad for n, w in student.weights.items() if w.grad is not None}
    yield loss_difference([loss.item()], [case["loss"]], case["tolerance"]["loss_rel"])
    yield from compared(gradients, case, expected, case["tolerance"]["grads_pooled_rel_fro"])


def training(case: Case) -> Iterator[Difference]:
    """Losses and weight changes of a few steps on given latents."""
    method, program = _esd(case, train_method=case["train_method"], lr=case["params"]["lr"])
    model, inputs = _model(case), case.file("inputs")
    student = Student(model, method.parameters(model))
    if len(student.weights) != case["n_trained"]:
        raise ExpungeError(f"{case['n_trained']} parameters train, here {len(student.weights)}")
    steps = case["steps"]
    batches = [_batch(program, model, case, inputs[s["x_t"]], s["timestep"]) for s in steps]
    tolerance = case["tolerance"]
    yield loss_difference(fit(method, student, batches), case["losses"], tolerance["losses_rel"])
    ours = student.changes()
    theirs = {n: w - model.base_weight(n) for n, w in case.file("expected").items()}
    yield from compared(ours, case, theirs, tolerance["rel_fro_of_change"])
    worst = max(float((ours[name] - change).abs().max()) for name, change in theirs.items())
    yield Difference(worst, tolerance["max_abs"])


def names(case: Case) -> Iterator[Difference]:
    """Names of the trained parameters, which must agree exactly."""
    from diffusers import UNet2DConditionModel

    for group, methods in case["names"].items():
        program, _, place = group.partition(" on ")
        variant = program.removesuffix("_native")
        folder = place or str(case["model"]).split()[0]
        unet = UNet2DConditionModel.from_pretrained(case.models / folder, subfolder="unet")
        for method, theirs in methods.items():
            if program != variant:
                theirs = [diffusers_name(name) for name in theirs]
            ours = parameters(unet, variant, method)
            yield Difference(float(len(set(ours) ^ set(theirs))), 0.0)
