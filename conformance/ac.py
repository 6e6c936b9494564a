"""Ablating Concepts beside its two released programs, and beside the one in SepME's repository."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

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
from expunge.concepts import Concept, Kind
from expunge.errors import ExpungeError, Unsupported
from expunge.method.batch import Batch
from expunge.method.student import Student
from expunge.methods import configured
from expunge.methods.ac.method import AblatingConcepts
from expunge.methods.ac.prompts import target_prompts
from expunge.methods.ac.released import LARGE, PAINTING, SMALL, STYLE, AcProgram
from expunge.models import Condition, Model
from expunge.models.text import TextInput
from expunge.training.loop import Trainer

# How closely two single-precision programs agree; twice the difference that the case itself
# reports to a double evaluation, where that is more.
SINGLE = {
    "noisy": 2e-6,
    "embedding": 2e-5,
    "instance_prediction": 2e-6,
    "loss": 2e-5,  # the embeddings are recomputed
    "ablation": 2e-5,
    "prior_loss": 2e-5,
    "ten_times_anchor": 2e-5,
    "norm_returned_by_clipping": 2e-5,
    "grad": 2e-5,
    "weight_update": 1e-3,
}


def steps(case: Case) -> Iterator[Difference]:
    """Whichever of the two released programs the case is of."""
    given = case.file("inputs")
    if "step0/latents" in given:
        return diffusers(case)
    if "ablation/x_start" in given:
        return compvis(case)
    raise Unsupported(f"concept-ablation: no check for {case.get('variant')}")


def diffusers(case: Case) -> Iterator[Difference]:
    """Prompts, noised latents, predictions, losses, gradients, their lengths, and weights."""
    params, inputs, expected = case["params"], case.file("inputs"), case.file("expected")
    method = _method(
        variant="diffusers",
        loss_type=params["loss_type"],
        lr=params["effective_lr"],
        batch_size=params["batch_size"],
        accumulation=1,
        prior_weight=params["prior_loss_weight"] if params["with_prior"] else 0.0,
    )
    model, batches = case.model(), []
    for number in range(_count(inputs)):
        given = under(inputs, f"step{number}")
        ids = given["input_ids"], given["anchor_ids"]
        yield Difference(_unknown(model, str(case["prompts"]["concept"]), *ids), 0.0)
        noisy = model.process.mix(given["latents"], given["noise"], given["timesteps"])
        yield _near(case, "noisy", noisy, given["noisy_latents"])
        condition, anchor = (_encoded(model, rows) for rows in ids)
        if number == 0:
            yield _near(case, "embedding", condition.rows, inputs["embedding"])
            yield _near(case, "embedding", anchor.rows, inputs["anchor_embedding"])
            condition = Condition(inputs["embedding"])
            anchor = Condition(inputs["anchor_embedding"])
        batches.append(
            {
                "latents": given["noisy_latents"],
                "timestep": given["timesteps"],
                "condition": condition,
                "anchor": anchor,
                "regressed": given["noise"],
                "mask": given["mask"],
            }
        )
    student = Student(model, method.parameters(model))
    ours, target = _program(method).predictions(student, batches[0])
    theirs = under(expected, "step0")
    ours = ours.detach()[: len(target)]
    yield _near(case, "instance_prediction", ours, theirs["instance_prediction"])
    yield _near(case, "instance_prediction", target, theirs["instance_target"])
    yield from _training(case, method, student, batches)


def compvis(case: Case) -> Iterator[Difference]:
    """The loss with its two terms, and the gradient."""
    params, inputs, model = case["params"], case.file("inputs"), case.model()
    weight = params["regularisation_weight"]
    method = _method(variant="compvis", loss_type=params["loss_type"], prior_weight=weight)
    parts = [under(inputs, name) for name in ("ablation", "regularisation")]
    both = {key: torch.cat([part[key] for part in parts]) for key in parts[1]}
    batch = {
        "latents": model.process.mix(both["x_start"], both["noise"], both["t"]),
        "timestep": both["t"],
        "condition": Condition(both["cond"]),
        "anchor": Condition(parts[0].get("c_target", parts[0]["cond"])),
        "regressed": both["noise"],
        "mask": both["mask"],
    }
    student = Student(model, method.parameters(model))
    terms = method.loss(student, batch)
    terms["loss"].backward()  # type: ignore[no-untyped-call]
    names = {"loss": "loss", "ablation": "loss_ablation", "prior": "loss_regularisation"}
    ours = [terms[name].item() for name in names]
    theirs = [case["scalars"][key] for key in names.values()]
    yield loss_difference(ours, theirs, 5e-6)
    yield _gradient(case, student, under(case.file("expected"), "grad"))


def sepme(case: Case) -> Iterator[Difference]:
    """Prompts, terms of the loss, gradients and weights of SepME's program."""
    params, inputs, model = case["params"], case.file("inputs"), case.model()
    method = _method(
        variant="sepme",
        lr=params["lr"],
        prior_weight=float(params["anchor_weight"]),
        gradients="cumulative" if str(params["gradients"]).startswith("cumulative") else "reset",
    )
    prompts = case["prompts"]
    words = str(prompts["concept_prompt"]).removesuffix(PAINTING).strip()
    ours = [f"{words} {PAINTING}", PAINTING]
    yield Difference(float(ours != [prompts["concept_prompt"], prompts["anchor_prompt"]]), 0.0)
    rows = torch.cat([inputs["e_concept"], inputs["e_anchor"]])
    yield _near(case, "embedding", model.encode(ours), rows)
    batches = [
        {
            "latents": inputs[f"step{number}/z_t"],
            "timestep": torch.tensor([step["timestep"]]),
            "condition": Condition(inputs["e_concept"]),
            "anchor": Condition(inputs["e_anchor"]),
        }
        for number, step in enumerate(case["schedule"])
    ]
    student = Student(model, method.parameters(model))
    begin_with(student, under(inputs, "student"))
    yield from _training(case, method, student, batches)


def _method(**values: Any) -> AblatingConcepts:
    method = configured("ac", fidelity="original", **values)
    assert isinstance(method, AblatingConcepts)
    return method


def _program(method: AblatingConcepts) -> AcProgram:
    assert method.program
    return method.program


def _count(inputs: Tensors) -> int:
    """Steps of a case."""
    return len({name.partition("/")[0] for name in inputs if name.startswith("step")})


@torch.no_grad()
def _encoded(model: Model, ids: Tensor) -> Condition:
    return model.embed(TextInput(ids))


def _unknown(model: Model, words: str, ids: Tensor, anchor_ids: Tensor) -> float:
    """How many of the targets' prompts aren't among those that our rules make of the anchors'."""
    anchor, _, target = words.lower().rpartition("+")
    kind: Kind = "object" if anchor else "style"
    concept = Concept(target=target, kind=kind, anchor=anchor or None)
    tokenizer, missing = model.text_encoders[0].tokenizer, 0
    for row, own in zip(ids[: len(anchor_ids)], anchor_ids, strict=True):
        prompt = tokenizer.decode(own, skip_special_tokens=True)
        made = target_prompts(
            prompt, concept, target, style=STYLE["diffusers"], memorized=anchor == "*"
        )
        texts = [before + text for text in made for before in ("", *SMALL, *LARGE)]
        known = {tokenizer.decode(model.tokens(text)) for text in texts}
        missing += tokenizer.decode(row, skip_special_tokens=True) not in known
    return float(missing)


def _training(
    case: Case, method: AblatingConcepts, student: Student, batches: Sequence[Batch]
) -> Iterator[Difference]:
    """Losses, gradients and their length before it is cut, and the weights, over all steps."""
    scalars, expected, trainer = case["scalars"], case.file("expected"), Trainer(method, student)
    begin = {name: weight.detach().clone() for name, weight in student.weights.items()}
    for number, batch in enumerate(batches):
        trainer.optimizer.zero_grad()
        method.loss(student, batch)["loss"].backward()  # type: ignore[no-untyped-call]
        if theirs := under(expected, f"step{number}/grad"):
            yield _gradient(case, student, theirs)
        gradients = [w.grad for w in student.weights.values() if w.grad is not None]
        length = nn.utils.get_total_norm(gradients).item()
        terms = trainer.step([batch])
        ours = {
            "loss": terms["loss"],
            "ablation": terms.get("ablation", 0.0),
            "prior_loss": terms.get("prior", 0.0),
            "ten_times_anchor": method.prior_weight * terms.get("prior", 0.0),
            "norm_returned_by_clipping": length,
        }
        for name in ours:
            if (key := f"step{number}/{name}") in scalars:
                yield loss_difference([ours[name]], [scalars[key]], _tolerance(case, name))
        if after := under(expected, f"weights_after_{number + 1}_steps"):
            yield _update(case, student, begin, after)


def _gradient(case: Case, student: Student, theirs: Tensors) -> Difference:
    ours = {n: w.grad for n, w in student.weights.items() if w.grad is not None}
    return _near(case, "grad", {n: _like(ours[n], t) for n, t in theirs.items()}, theirs)


def _update(case: Case, student: Student, begin: Tensors, after: Tensors) -> Difference:
    """The change of the weights that the case has; all others may not have changed."""
    moved = {n for n, weight in student.weights.items() if not torch.equal(weight, begin[n])}
    if moved - set(after):
        raise ExpungeError(f"{len(after)} parameters train, here {len(moved)}")
    ours = {n: _like((student.weights[n] - begin[n]).detach(), w) for n, w in after.items()}
    theirs = {name: weight - _like(begin[name], weight) for name, weight in after.items()}
    return _near(case, "weight_update", ours, theirs)


def _like(ours: Tensor, theirs: Tensor) -> Tensor:
    """A tensor in the form of a stored one, which is whole or a sample."""
    return ours if ours.shape == theirs.shape else sampled(ours)


def _near(case: Case, key: str, ours: Tensor | Tensors, theirs: Tensor | Tensors) -> Difference:
    first = ours if isinstance(ours, Mapping) else {"": ours}
    second = theirs if isinstance(theirs, Mapping) else {"": theirs}
    return Difference(pooled(first, second), _tolerance(case, key))


def _tolerance(case: Case, key: str) -> float:
    reported = {
        "step0/grad": "grad",
        "clip_norm": "norm_returned_by_clipping",
        "prior": "prior_loss",
    }
    known = {reported.get(name, name): value for name, value in case["tolerance"].items()}
    return max(SINGLE[key], 2 * float(known.get(key, 0)))
