"""Forget-Me-Not beside its released program, and beside the one in SepME's repository."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from conformance.case import (
    Case,
    Difference,
    Tensors,
    begin_with,
    loss_difference,
    pooled,
    sampled,
    under,
)
from expunge.concepts import Concept
from expunge.errors import ExpungeError
from expunge.method.batch import Batch
from expunge.method.student import Student
from expunge.methods import configured
from expunge.methods.fmn.batches import columns
from expunge.methods.fmn.method import (
    PAINTING,
    ForgetMeNot,
    attention_norms,
    logit_distances,
)
from expunge.models import Condition, Model
from expunge.training.loop import Trainer

# How closely two single-precision programs agree; twice the difference that the case itself
# reports to a double evaluation, where that is more.
SINGLE = {
    "noisy": 2e-6,
    "embedding": 2e-5,
    "loss": 5e-6,
    "per_layer": 2e-6,
    "grad": 2e-5,
    "grad_norms": 2e-5,
    "clip_norm": 2e-5,
    "weight_update": 1e-3,
}


def steps(case: Case) -> Iterator[Difference]:
    """Positions, noised latents, losses, gradients and weights of the released program."""
    params, inputs, model = case["params"], case.file("inputs"), case.model()
    _pad(model, inputs["step0/input_ids"])
    pooler = params["pooler"] if params["pooler"] in ("none", "first") else "all"
    own: dict[str, Any] = {"train_method": "full"}
    if params["only_cross_attention"]:
        own = {"train_method": "x", "max_grad_norm": params["max_grad_norm"]}
    method = _method(lr=params["lr"], pooler=pooler, no_real_image=params["zero_latents"], **own)
    prompt, words = case["prompts"]["prompt"], case["prompts"]["concept"]
    kinds = (Concept(target=words, kind=kind) for kind in ("object", "style"))
    yield Difference(float(not any((prompt, words) in method.prompts(kind) for kind in kinds)), 0.0)
    marks = columns(model, prompt, words, method.pooler)[None]
    yield _near(case, "embedding", model.encode([prompt]), inputs["embedding"])
    batches = []
    for number, step in enumerate(case["schedule"]):
        given, timestep = under(inputs, f"step{number}"), torch.tensor([step["timestep"]])
        yield Difference(float((marks != given["concept_positions"]).sum()), 0.0)
        noisy = model.process.mix(given["latents"], given["noise"], timestep)
        yield _near(case, "noisy", noisy, given["noisy_latents"])
        batches.append(
            {
                "latents": given["noisy_latents"],
                "timestep": timestep,
                "condition": Condition(inputs["embedding"]),
                "columns": marks,
            }
        )
    whole = Student(model, model.select("all"))
    attention_norms(whole, batches[0]).sum().backward()  # type: ignore[no-untyped-call]
    yield from _gradients(case, whole)
    yield from _training(case, method, Student(model, method.parameters(model)), batches)


def logits(case: Case) -> Iterator[Difference]:
    """Terms of each layer, losses, gradients and weights of SepME's program."""
    params, inputs, model = case["params"], case.file("inputs"), case.model()
    cumulative = str(params["gradients"]).startswith("cumulative")
    method = _method(
        variant="sepme", lr=params["lr"], gradients="cumulative" if cumulative else "reset"
    )
    prompts = case["prompts"]
    words = prompts["concept_prompt"].removeprefix(PAINTING).strip()
    ours = [*(prompt for prompt, _ in method.prompts(Concept(target=words))), PAINTING]
    theirs = [prompts["concept_prompt"], prompts["generic_prompt"]]
    yield Difference(float(ours != theirs), 0.0)
    rows = torch.cat([inputs["e_concept"], inputs["e_generic"]])
    yield _near(case, "embedding", model.encode(ours), rows)
    batches = [
        {
            "latents": inputs[f"step{number}/z_t"],
            "timestep": torch.tensor([step["timestep"]]),
            "condition": Condition(inputs["e_concept"]),
            "generic": inputs["e_generic"],
        }
        for number, step in enumerate(case["schedule"])
    ]
    student = Student(model, method.parameters(model))
    begin_with(student, under(inputs, "student"))
    distances = logit_distances(student, batches[0])
    yield _near(case, "per_layer", distances.detach(), case.file("expected")["step0/per_layer"])
    distances.sum().backward()  # type: ignore[no-untyped-call]
    yield from _gradients(case, student)
    yield from _training(case, method, student, batches)


def _method(**values: Any) -> ForgetMeNot:
    method = configured("fmn", fidelity="original", **values)
    assert isinstance(method, ForgetMeNot)
    return method


def _pad(model: Model, ids: Tensor) -> None:
    """Pad as the case's tokenizer did, which differs between Stable Diffusion 1.x and 2.x."""
    tokenizer = model.text_encoders[0].tokenizer
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(int(ids[0, -1]))


def _gradients(case: Case, student: Student) -> Iterator[Difference]:
    """Gradients of the first step, and which parameters have none."""
    expected = case.file("expected")
    ours = {n: w.grad.double() for n, w in student.weights.items() if w.grad is not None}
    missing = student.weights.keys() - ours.keys()
    yield Difference(float(len(missing ^ set(case["no_gradient"]))), 0.0)
    theirs = under(expected, "step0/grad")
    yield _near(case, "grad", {name: sampled(ours[name]) for name in theirs}, theirs)
    norms = under(expected, "step0/grad_norm")
    if set(norms) != set(ours):
        raise ExpungeError(f"{len(norms)} parameters have a gradient, here {len(ours)}")
    worst = max(float((ours[name].norm() - norm).abs()) for name, norm in norms.items())
    largest = max(float(norm) for norm in norms.values())
    yield Difference(worst / largest, _tolerance(case, "grad_norms"))


def _training(
    case: Case, method: ForgetMeNot, student: Student, batches: Sequence[Batch]
) -> Iterator[Difference]:
    """Losses, the gradient's length before it is cut, and the weights, over all steps."""
    scalars, expected, trainer = case["scalars"], case.file("expected"), Trainer(method, student)
    begin = {name: weight.detach().clone() for name, weight in student.weights.items()}
    losses = []
    for number, batch in enumerate(batches):
        if f"step{number}/norm_returned_by_clipping" in scalars:
            length = scalars[f"step{number}/norm_returned_by_clipping"]
            yield _length(case, method, student, batch, length)
        losses.append(trainer.step([batch])["loss"])
        yield from _weights(case, student, begin, f"weights_after_{number + 1}_steps", expected)
    theirs = [scalars[f"step{number}/loss"] for number in range(len(batches))]
    yield loss_difference(losses, theirs, _tolerance(case, "loss"))
    still = (name for name in case["no_gradient"] if name in begin)
    moved = sum(not torch.equal(student.weights[name], begin[name]) for name in still)
    yield Difference(float(moved), 0.0)


def _length(
    case: Case, method: ForgetMeNot, student: Student, batch: Batch, theirs: float
) -> Difference:
    """Length of the gradient that is cut; the program finds 0 where it cuts none."""
    if method.max_grad_norm is None:
        return Difference(abs(theirs), 0.0)
    weights = list(student.weights.values())
    loss = method.loss(student, batch)["loss"]
    gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    squares = [gradient.double().square().sum() for gradient in gradients if gradient is not None]
    return loss_difference(
        [float(torch.stack(squares).sum().sqrt())], [theirs], _tolerance(case, "clip_norm")
    )


def _weights(
    case: Case, student: Student, begin: Tensors, group: str, expected: Tensors
) -> Iterator[Difference]:
    """The change of the weights since the start, where the case has weights."""
    if after := under(expected, group):
        ours = {n: sampled(student.weights[n].detach().double() - begin[n]) for n in after}
        theirs = {n: weight.double() - sampled(begin[n]) for n, weight in after.items()}
        yield _near(case, "weight_update", ours, theirs)


def _near(case: Case, key: str, ours: Tensor | Tensors, theirs: Tensor | Tensors) -> Difference:
    first = ours if isinstance(ours, Mapping) else {"": ours}
    second = theirs if isinstance(theirs, Mapping) else {"": theirs}
    return Difference(pooled(first, second), _tolerance(case, key))


def _tolerance(case: Case, key: str) -> float:
    return max(SINGLE[key], 2 * float(case["tolerance"].get(key, 0)))
