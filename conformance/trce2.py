"""TRCE's steering stage beside its released program."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from conformance.case import (
    Case,
    Difference,
    Tensors,
    begin_with,
    pooled,
    sampled,
    under,
)
from expunge.concepts import Concept
from expunge.edits import Component, Dense, Edit
from expunge.edits.base import Base
from expunge.edits.component import Provenance
from expunge.errors import ExpungeError
from expunge.method.batch import Batch
from expunge.method.student import Student
from expunge.methods import configured
from expunge.methods.trce.schedule import released
from expunge.methods.trce.steering import TRCESteering
from expunge.models import Condition, Model
from expunge.training.latents import latents_along
from expunge.training.loop import Trainer
from expunge.training.trajectories import denoise

# How closely two single-precision programs agree; three times the difference that the case itself
# reports to a double evaluation, where that is more.
EMBEDDINGS, LATENTS, LOSSES, GRADIENTS, UPDATES = 2e-5, 2e-6, 5e-6, 2e-5, 1e-3
HINGES = 2e-6
"""The same for the steering, as an absolute number: it is a small difference of large ones."""


def steps(case: Case) -> Iterator[Difference]:
    """Trajectories, losses, gradients and weights over a few steps."""
    method, model, inputs = _method(case), case.model(), case.file("inputs")
    yield from _embeddings(case, model, inputs)
    yield from _trajectories(case, method, model, inputs)
    student = Student(model, method.parameters(model), start=_stage1(model, inputs))
    if theirs := under(inputs, "student"):
        begin_with(student, theirs)
    yield from _training(case, method, student, inputs)


def _method(case: Case) -> TRCESteering:
    params = case["params"]
    known = ("guidance", "preserve_scale", "beta", "margin", "regularization_batch_size", "lr")
    method = configured(
        "trce-steering",
        fidelity="original",
        gradients=str(params["gradients"]).partition(" ")[0],
        align_timestep=params["align_timestep_trajectory"],
        iterations=len(case["schedule"]),
        **{key: params[key] for key in known},
    )
    assert isinstance(method, TRCESteering)
    return method


def _stage1(model: Model, inputs: Tensors) -> Edit:
    """The given weights of stage 1 as an edit."""
    weights = under(inputs, "stage1")
    changes = {name: weight.double() - model.base_weight(name) for name, weight in weights.items()}
    provenance = Provenance(
        method="trce",
        settings={},
        concepts=(Concept(target="given"),),
        keep=(),
        seed=0,
        base=Base.of(model, tuple(changes)),
        versions={},
    )
    return Edit((Component(Dense(changes), provenance),))


def _embeddings(case: Case, model: Model, inputs: Tensors) -> Iterator[Difference]:
    """Our embeddings; from then on the case's are used."""
    given = {case["prompts"]["unconditional"]: inputs["e_unconditional"][0]}
    for number, draw in enumerate(case["schedule"]):
        erased, safe = case["prompts"]["pairs"][draw["pair"]]
        given[erased] = inputs[f"step{number}/e_malicious"][0]
        given[safe] = inputs[f"step{number}/e_safe"][0]
    ours = dict(zip(given, model.encode(list(given)), strict=True))
    yield Difference(pooled(ours, given), EMBEDDINGS)
    model.remember({prompt: Condition(rows[None]) for prompt, rows in given.items()})


def _trajectories(
    case: Case, method: TRCESteering, model: Model, inputs: Tensors
) -> Iterator[Difference]:
    """Timesteps, and latents before and after the steps that are looked at."""
    count = method.num_inference_steps
    timetable = released(model.process, count)
    times, window = timetable.timesteps.tolist(), 1000 // count
    empty = model.condition([case["prompts"]["unconditional"]])
    for number, draw in enumerate(case["schedule"]):
        start, step = f"step{number}", draw["k"]
        prompt = case["prompts"]["pairs"][draw["pair"]][0]
        yield Difference(float(times[step] != draw["timestep"]), 0.0)
        yield Difference(float(step > method.max_early_timestep), 0.0)
        noise = inputs[f"{start}/initial_noise"]
        ours = [*latents_along(model, timetable, noise, [prompt], step + 1, method.start_guidance)]
        yield _near(ours[step], inputs[f"{start}/latent_before"], LATENTS)
        yield _near(ours[step + 1], inputs[f"{start}/latent_after"], LATENTS)
        for row, held in enumerate(draw["regularisation"]):
            yield Difference(float(held["skipped"] != (held["k"] == count)), 0.0)
            if held["skipped"]:
                continue
            lowest = times[held["k"]]
            yield Difference(float(not lowest <= held["timestep"] < lowest + window), 0.0)
            before = inputs[f"{start}/reg{row}/latent_before"]
            (taken,) = denoise(
                model.predict,
                timetable,
                before,
                empty,
                empty,
                guidance_scale=1.0,
                timesteps=timetable.timesteps[held["k"]][None],
            )
            yield _near(taken.after, inputs[f"{start}/reg{row}/latent_after"], LATENTS)


def _batch(case: Case, model: Model, inputs: Tensors, number: int) -> Batch:
    """What a step of the case looks at."""
    params, draw = case["params"], case["schedule"][number]
    erased, safe = case["prompts"]["pairs"][draw["pair"]]
    empty = model.condition([case["prompts"]["unconditional"]])
    rows = [(row, d) for row, d in enumerate(draw["regularisation"]) if not d["skipped"]]
    place = _place(params["align_timestep_trajectory"])
    held = _place(params["align_timestep_regularisation"])
    latents = inputs[f"step{number}/{place}"]
    return {
        "latents": latents,
        "timestep": torch.tensor([draw["timestep"]]),
        "condition": model.condition([erased]),
        "safe": model.condition([safe]),
        "empty": empty,
        "held_latents": torch.cat(
            [latents[:0], *(inputs[f"step{number}/reg{row}/{held}"] for row, _ in rows)]
        ),
        "held_timestep": torch.tensor([d["timestep"] for _, d in rows], dtype=torch.long),
        "held_condition": empty.expand(len(rows)),
    }


def _place(aligned: bool) -> str:
    return "latent_before" if aligned else "latent_after"


def _training(
    case: Case, method: TRCESteering, student: Student, inputs: Tensors
) -> Iterator[Difference]:
    expected, trainer = case.file("expected"), Trainer(method, student)
    seen = {name: torch.zeros_like(weight) for name, weight in student.weights.items()}
    for number in range(len(case["schedule"])):
        record = trainer.step([_batch(case, student.model, inputs, number)])
        yield from _terms(record, case["scalars"], f"step{number}")
        now = {n: w.grad.clone() for n, w in student.weights.items() if w.grad is not None}
        own = now if method.gradients == "reset" else {n: now[n] - seen[n] for n in now}
        yield from _compared(case, own, expected, f"step{number}/grad")
        yield from _compared(case, now, expected, f"step{number}/grad_seen_by_optimizer")
        seen = now
        yield from _updates(student, expected, f"weights_after_{number + 1}_steps")


def _terms(
    record: Mapping[str, float], scalars: Mapping[str, float], step: str
) -> Iterator[Difference]:
    for key, name, tolerance in (
        ("loss", "loss", 0.0),
        ("loss_regularisation", "regularization", 0.0),
        ("loss_erase", "erase", HINGES),
        ("hinge_neg", "erase_prompt", HINGES),
        ("hinge_uncond", "erase_empty", HINGES),
    ):
        if f"{step}/{key}" in scalars:
            theirs = scalars[f"{step}/{key}"]
            yield Difference(abs(record[name] - theirs), max(LOSSES * abs(theirs), tolerance))


def _compared(case: Case, ours: Tensors, expected: Tensors, group: str) -> Iterator[Difference]:
    """Distance of gradients at the places that are stored, and of their norms."""
    if theirs := under(expected, group):
        _same_names(theirs, ours)
        tolerance = max(GRADIENTS, 3 * case["tolerance"].get(group, 0.0))
        yield Difference(pooled({n: sampled(t) for n, t in ours.items()}, theirs), tolerance)
        norms = {name: tensor.double().norm()[None] for name, tensor in ours.items()}
        yield Difference(pooled(norms, under(expected, f"{group}_norm")), tolerance)


def _updates(student: Student, expected: Tensors, group: str) -> Iterator[Difference]:
    """Distance of the changes of the weights at the places that are stored."""
    if theirs := under(expected, group):
        _same_names(theirs, student.weights)
        base = {name: student.before(name).double() for name in theirs}
        ours = {name: sampled(student.value(name).detach() - base[name]) for name in theirs}
        changes = {name: weight - sampled(base[name]) for name, weight in theirs.items()}
        yield Difference(pooled(ours, changes), UPDATES)


def _near(ours: Tensor, theirs: Tensor, tolerance: float) -> Difference:
    return Difference(pooled({"": ours}, {"": theirs}), tolerance)


def _same_names(theirs: Tensors, ours: Tensors) -> None:
    if set(theirs) != set(ours):
        raise ExpungeError(f"{len(theirs)} parameters train, here {len(ours)}")
