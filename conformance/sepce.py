"""SepCE beside the released programs: solution sets, separable shifts and their subsets, joint."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import count, takewhile

import torch
from torch import Tensor

from conformance.case import Case, Difference, Tensors, pooled, relative, under
from expunge.algebra.null_space import null_space, rref
from expunge.concepts import Policy
from expunge.edits import Component, Edit
from expunge.edits.applied import edited_weights
from expunge.edits.base import Base
from expunge.edits.component import Provenance
from expunge.errors import ExpungeError
from expunge.method.base import Part
from expunge.methods import configured
from expunge.methods.sepme.examples import ComparedExamples, rows_of
from expunge.methods.sepme.loss import momentum
from expunge.methods.sepme.sepce import SepCE, joined
from expunge.methods.sepme.shifts import JointShifts, Shifts
from expunge.models import Condition, Model
from expunge.training.loop import Trainer

BASIS, SPACE, RESIDUAL = 2e-5, 5e-6, 1e-10
"""How closely a basis of 24-bit numbers agrees with one of 53-bit ones, the space that it spans,
and how orthogonal ours must be to what is protected, as a part of the rows' length."""

SCALARS, LATER, GRADIENTS, UPDATES, OUTPUTS = 5e-6, 5e-5, 2e-5, 1e-3, 5e-6
"""How closely two correct programs agree in single precision."""


def solutions(case: Case) -> Iterator[Difference]:
    """Bases of what is orthogonal to given rows: as many vectors, the same ones, the same space."""
    inputs, expected = case.file("inputs"), case.file("expected")
    for name, rows in under(inputs, "protected").items():
        theirs, ours = expected[f"basis/{name}"], rref(rows)
        yield Difference(abs(len(ours) - case["scalars"][f"{name}/vectors"]), 0.0)
        yield from _same_basis(rows, theirs)
        yield _inside(rows, theirs)


def shifts(case: Case) -> Iterator[Difference]:
    """Shifts trained one by one, or all at once: the inputs say for which concept latents are."""
    inputs = case.file("inputs")
    words: list[str] = case["prompts"]["concepts"]
    names = [text.replace(" ", "_") for text in words]
    contexts = under(inputs, "context")
    for name in names:
        others = [rows for other, rows in contexts.items() if other != name]
        rows, theirs = torch.cat(others, 1)[0], inputs[f"basis/{name}"]
        yield _inside(rows, theirs)
        if f"{name}/step0/z_t" in inputs:  # jointly, any basis was given
            yield from _same_basis(rows, theirs)
    if f"{names[0]}/step0/z_t" in inputs:
        yield from _separable(case, words, names)
    else:
        yield from _joint(case, names)


def _inside(rows: Tensor, theirs: Tensor) -> Difference:
    """How much of their vectors isn't in our null space of these rows."""
    own = null_space(rows)
    return Difference(pooled({"": theirs @ own.T @ own}, {"": theirs}), SPACE)


def _same_basis(rows: Tensor, theirs: Tensor) -> Iterator[Difference]:
    ours = rref(rows)
    yield Difference(pooled({"": ours[: len(theirs)]}, {"": theirs}), BASIS)
    residual = (ours @ rows.double().T).abs().max() / rows.double().norm(dim=1).max()
    yield Difference(float(residual), RESIDUAL)


# --- one by one


def _separable(case: Case, words: Sequence[str], names: Sequence[str]) -> Iterator[Difference]:
    model, method = case.model(), _method(case, "separable")
    inputs, expected, scalars = case.file("inputs"), case.file("expected"), case["scalars"]
    parts = []
    for text, name in zip(words, names, strict=True):
        student = method.shifts(model, [inputs[f"basis/{name}"]])
        trainer, history = Trainer(method, student), []
        for row in _given(case, student, name):
            turn = {"turn": torch.tensor(0.0)}
            history.append(trainer.step([{**row._asdict(), **turn}]))
            if len(history) == 1:
                yield from _gradients(trainer, 0, under(expected, f"{name}/step0_grad"))
        ours = {
            "momentum": momentum(record["direction"] for record in history),
            "weight_term": [record["weights"] for record in history],
        }
        for key, values in ours.items():
            theirs = scalars[f"{name}/{key}"]
            yield relative(values[:1], theirs[:1], SCALARS)
            yield relative(values, theirs, LATER)
        yield from _coefficients(student, 0, under(expected, f"{name}/coefficients"))
        (part,) = method.parts(student, Policy.of(text))
        parts.append(_component(model, method, part))
    yield from _subsets(case, model, Edit(tuple(parts)), words, names)


def _given(case: Case, student: Shifts, name: str) -> Iterator[ComparedExamples]:
    """The examples of a concept's steps."""
    inputs = case.file("inputs")
    keys = takewhile(inputs.__contains__, (f"{name}/step{number}/z_t" for number in count()))
    for key, timestep in zip(keys, case["schedule"][name], strict=True):
        yield _row(student, inputs, inputs[key], timestep, name)


def _row(
    student: Shifts, inputs: Tensors, latents: Tensor, timestep: int, name: str
) -> ComparedExamples:
    concept, empty = (Condition(inputs[f"context/{key}"]) for key in (name, "empty"))
    return rows_of(student, latents, torch.tensor([timestep]), concept, empty)


@torch.no_grad()
def _subsets(
    case: Case, model: Model, edit: Edit, words: Sequence[str], names: Sequence[str]
) -> Iterator[Difference]:
    """Weights and outputs of every subset, and what its parts leave alone."""
    inputs, expected = case.file("inputs"), case.file("expected")
    at, timestep = inputs["probe_latent"], torch.tensor([case["params"]["probe_timestep"]])

    def probes() -> dict[str, Tensor]:
        contexts = under(inputs, "context").items()
        return {key: model.predict(at, timestep, Condition(rows)) for key, rows in contexts}

    base = {name: model.base_weight(name) for name in edit.names}
    before = probes()
    yield Difference(pooled(before, under(expected, "probe_original")), OUTPUTS)
    groups = {key.partition("/")[0] for key in expected}
    for group in sorted(group for group in groups if group.startswith("subset_")):
        marks = [int(mark) - 1 for mark in group.removeprefix("subset_")]
        some = edit.only(*(words[mark] for mark in marks))
        rest = [text for number, text in enumerate(words) if number not in marks]
        left = edit.without(*rest) if rest else edit
        yield Difference(float(some.id != left.id), 0.0)
        theirs = {name: w.double() - base[name] for name, w in under(expected, group).items()}
        edited = edited_weights(model, some.components, some.names)
        ours = {n: w - base[n].double() for n, w in edited.items() if w is not None}
        if set(ours) != set(theirs):
            raise ExpungeError(f"{group}: {len(theirs)} tensors change, here {len(ours)}")
        yield Difference(pooled(ours, theirs), UPDATES)
        with some.applied(model):
            after = probes()
        yield Difference(pooled(after, under(expected, f"probe_{group}")), OUTPUTS)
        for key in {"empty", *names} - {names[mark] for mark in marks}:
            yield Difference(pooled({key: after[key]}, {key: before[key]}), OUTPUTS)


# --- all at once


def _joint(case: Case, names: Sequence[str]) -> Iterator[Difference]:
    model, method = case.model(), _method(case, "joint")
    inputs, expected, scalars = case.file("inputs"), case.file("expected"), case["scalars"]
    student = method.shifts(model, [inputs[f"basis/{name}"] for name in names])
    assert isinstance(student, JointShifts)
    trainer, history = Trainer(method, student), []
    for number, timestep in enumerate(case["schedule"]):
        rows = [
            _row(student, inputs, inputs[f"step{number}/z_t/{name}"], timestep, name)
            for name in names
        ]
        columns = (joined(column, model.device) for column in zip(*rows, strict=True))
        history.append(trainer.step([dict(zip(ComparedExamples._fields, columns, strict=True))]))
        if number == 0:
            for turn, name in enumerate(names):
                yield from _gradients(trainer, turn, under(expected, f"{name}/step0_grad"))
    for turn, name in enumerate(names):
        yield from _coefficients(student, turn, under(expected, f"{name}/coefficients"))
        m = scalars.get(f"final_momentum/{name}")
        if m is not None:
            yield relative([float(student.state["m"][turn])], [m], LATER)
    keys = {"loss": "loss"} | {f"direction{n}": f"direction/{x}" for n, x in enumerate(names)}
    for ours, theirs in keys.items():
        values = [scalars[f"step{number}/{theirs}"] for number in range(len(history))]
        yield relative([history[0][ours]], values[:1], SCALARS)
        yield relative([record[ours] for record in history], values, LATER)


# --- both


def _method(case: Case, variant: str) -> SepCE:
    params = case["params"]
    if not str(params["gradients"]).startswith("cumulative"):
        raise ExpungeError("the released program sums up all gradients; this case resets them")
    known: Mapping[str, float] = {
        key: params[key] for key in ("lr", "reg_beta", "scale_factor", "max_base")
    }
    method = configured("sepce", fidelity="original", variant=variant, **known)
    assert isinstance(method, SepCE)
    return method


def _gradients(trainer: Trainer[Shifts], turn: int, theirs: Tensors) -> Iterator[Difference]:
    """The first step's gradients of a concept's coefficients."""
    ours = {name: trainer.sums[f"{turn}:{name}"] for name in theirs}
    yield Difference(pooled(ours, theirs), GRADIENTS)


def _coefficients(student: Shifts, turn: int, theirs: Tensors) -> Iterator[Difference]:
    ours = {name: weight.detach() for name, weight in student.coefficients(turn).items()}
    if set(ours) != set(theirs):
        raise ExpungeError(f"{len(theirs)} matrices are trained, here {len(ours)}")
    yield Difference(pooled(ours, theirs), UPDATES)


def _component(model: Model, method: SepCE, part: Part) -> Component:
    names = part.payload.names
    provenance = Provenance(
        method=method.name,
        settings=method.model_dump(mode="json"),
        concepts=part.concepts,
        keep=(),
        seed=0,
        base=Base.of(model, names),
        versions={},
    )
    return Component(part.payload, provenance)
