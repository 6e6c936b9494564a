"""CiE beside the released program of SepME."""

import re
from collections.abc import Iterator, Mapping
from itertools import count, takewhile
from typing import Any

import torch

from conformance.case import (
    Case,
    Difference,
    Tensors,
    begin_with,
    pooled,
    relative,
    sampled,
    under,
)
from expunge.errors import ExpungeError
from expunge.method.batch import Batch
from expunge.method.student import Student
from expunge.methods import configured
from expunge.methods.sepme.cie import CiE, momentum, rows_of
from expunge.models import Condition, Model
from expunge.training.loop import Trainer

SCALARS, LATER, GRADIENTS, UPDATES = 5e-6, 5e-5, 2e-5, 1e-3
"""How closely two correct programs agree in single precision.

After a step, scalars agree less: Adam makes whole steps of gradients that are rounding errors.
"""

History = list[dict[str, float]]


def steps(case: Case) -> Iterator[Difference]:
    """Terms of the loss, gradients, weights and the stopping rule over a few steps."""
    inputs, expected, scalars = case.file("inputs"), case.file("expected"), case["scalars"]
    method, model = _method(case), case.model()
    student = Student(model, method.parameters(model))
    if start := under(inputs, "student"):
        begin_with(student, start)
    trainer, history = Trainer(method, student), History()
    for step, batch in enumerate(_batches(case, student, inputs)):
        before = {name: total.clone() for name, total in trainer.sums.items()}
        history.append(trainer.step([batch]))
        own = {name: total - before.get(name, 0) for name, total in trainer.sums.items()}
        yield from _sampled(own, expected, f"step{step}/grad", GRADIENTS)
        yield from _sampled(trainer.sums, expected, f"step{step}/grad_seen_by_optimizer", GRADIENTS)
        if after := under(expected, f"weights_after_{step + 1}_steps"):
            yield from _updates(model, student, expected, f"weights_after_{step + 1}_steps", after)
    yield from _terms(history, expected, scalars)
    yield from _stops(method, history, scalars)


def _method(case: Case) -> CiE:
    params = case["params"]
    known = {key: params[key] for key in ("lr", "reg_beta", "threshold") if key in params}
    cumulative = str(params["gradients"]).startswith("cumulative")
    method = configured(
        "cie", fidelity="original", gradients="cumulative" if cumulative else "reset", **known
    )
    assert isinstance(method, CiE)
    if not cumulative:
        raise ExpungeError("the released program sums up all gradients; this case resets them")
    return method


def _batches(case: Case, student: Student, inputs: Tensors) -> Iterator[Batch]:
    given = takewhile(inputs.__contains__, (f"step{number}/z_t" for number in count()))
    for key, draw in zip(given, case["schedule"], strict=True):
        timestep = torch.tensor([draw["timestep"]])
        concept, empty = (Condition(inputs[f"e_{name}"]) for name in ("concept", "empty"))
        rows = rows_of(student, inputs[key], timestep, concept, empty)
        yield {**rows._asdict(), "turn": torch.tensor(0.0)}


def _terms(
    history: History, expected: Tensors, scalars: Mapping[str, float]
) -> Iterator[Difference]:
    """Direction, weight term, loss and momentum, as lists or step by step."""
    ours = {
        "direction": [record["direction"] for record in history],
        "weight_term": [record["weights"] for record in history],
        "loss": [record["loss"] for record in history],
        "momentum": momentum(record["direction"] for record in history),
    }
    wanted = {key: expected[key].tolist() for key in ours if key in expected}
    for key in ours:
        single = {n: scalars.get(f"step{n}/{key}") for n in range(len(history))}
        if None not in single.values():
            wanted[key] = list(single.values())
    for key, theirs in wanted.items():
        yield relative(ours[key][:1], theirs[:1], SCALARS)
        yield relative(ours[key], theirs, LATER)
    if "final_momentum" in scalars:
        yield relative(ours["momentum"][-1:], [scalars["final_momentum"]], LATER)


def _stops(method: CiE, history: History, scalars: Mapping[str, float]) -> Iterator[Difference]:
    """After how many steps the rule ends a training, and the momentum then; exact numbers."""

    def ended(**values: Any) -> int:
        chosen = method.model_copy(update=values)
        last = min(chosen.iterations, len(history))
        return next((n for n in range(1, last) if chosen.finished(history[:n])), last)

    never, always = {"threshold": -float("inf")}, {"threshold": float("inf")}
    for key, theirs in scalars.items():
        limit = re.fullmatch(r"updates_with_iteration_limit_(\d+)", key)
        if key == "updates_with_threshold":
            ours = ended()
        elif key == "updates_with_threshold_always_met":
            ours = ended(**always)
        elif key == "updates_without_stop":
            ours = ended(**never)
        elif limit:
            ours = ended(iterations=int(limit[1]) + 1, **never)
        else:
            continue
        yield Difference(abs(ours - theirs), 0.0)
    if "final_momentum_with_threshold" in scalars:
        m = momentum(record["direction"] for record in history)[ended() - 1]
        yield relative([m], [scalars["final_momentum_with_threshold"]], LATER)


def _updates(
    model: Model, student: Student, expected: Tensors, group: str, after: Tensors
) -> Iterator[Difference]:
    """The change of the weights, at the places that are stored."""
    base = {name: model.base_weight(name).double() for name in after}
    ours = {name: sampled(student.value(name).detach() - base[name]) for name in after}
    theirs = {name: weight.double() - sampled(base[name]) for name, weight in after.items()}
    yield Difference(pooled(ours, theirs), UPDATES)
    yield from _norms({n: student.value(n).detach() for n in after}, expected, group, SCALARS)


def _sampled(
    ours: Tensors, expected: Tensors, group: str, tolerance: float
) -> Iterator[Difference]:
    """Distance to a group at the places that are stored, and of the norms; all names there."""
    theirs = under(expected, group)
    if not theirs:
        return
    if set(theirs) != set(ours):
        raise ExpungeError(f"{group}: {len(theirs)} tensors, here {len(ours)}")
    yield Difference(pooled({name: sampled(t) for name, t in ours.items()}, theirs), tolerance)
    yield from _norms(ours, expected, group, tolerance)


def _norms(ours: Tensors, expected: Tensors, group: str, tolerance: float) -> Iterator[Difference]:
    """Distance of the norms of whole tensors."""
    if theirs := under(expected, f"{group}_norm"):
        norms = {name: ours[name].double().norm()[None] for name in theirs}
        yield Difference(pooled(norms, theirs), tolerance)
