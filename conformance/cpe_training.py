"""CPE's training beside its released program: losses, gradients, stages."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from conformance.case import Case, Difference, Tensors, begin_with, loss_difference, pooled
from expunge.concepts import Concept, Policy
from expunge.edits.residual_gates import ResidualGates
from expunge.formats import cpe as files
from expunge.method.batch import Batch
from expunge.methods import configured
from expunge.methods.cpe.method import CPE
from expunge.methods.cpe.student import GateStudent
from expunge.training.loop import Trainer

LOSS, PROJECTION, GRADIENT, SMALL_GRADIENT, UPDATE = 5e-6, 2e-6, 2e-5, 2e-4, 1e-3
"""How close two correct programs come, relative."""
ROOM = 5
"""How much further we may be from the single-precision original than it is from exact numbers."""
STAGES = ("erase_stage0", "attacker", "erase_stage1")
"""What the training cases call the first three stages."""


def _method(case: Case, **values: Any) -> CPE:
    params = case["params"]
    method = configured(
        "cpe",
        fidelity="original",
        guidance_scale=params["guidance_scale"],
        pal=params["pal"],
        adv_coef=params["adv_coef"],
        gate_rank=params["gate_rank"],
        adapter_rank=params["adapter_rank"],
        alpha=params["alpha"],
        shifts=params["adversarial_A"],
        batch_size=params["anchors_S"],
        **values,
    )
    assert isinstance(method, CPE)
    return method


def _student(case: Case, method: CPE, shifts: Tensor) -> GateStudent:
    """Gates as the case begins with, and its shifts ``[shifts, tokens, width]``."""
    model, begun = case.model(), case.file("adapter_initial")
    concept = Concept(target=case["prompts"]["target"], anchor=case["prompts"]["surrogate"])
    student = method.student(model, Policy.of(concept), 0)
    start = _unscaled(files.gates(case.folder, begun, model), student.scale)
    begin_with(student, {**start, "shifts": shifts[None]})
    return student


def _unscaled(gates: ResidualGates, scale: float) -> dict[str, Tensor]:
    """The trained tensors of a file's gates."""
    tensors = gates.tensors()
    del tensors["widths"]
    return {**tensors, "up": tensors["up"] / scale}


def _batch(
    target: Tensor, neutral: Tensor, anchors: Tensor, empty: Tensor, *, shifted: bool
) -> Batch:
    """Of the erasing stages; ``anchors`` are ``[anchors, tokens, width]``."""
    batch = {"target": target, "neutral": neutral, "anchors": torch.cat([anchors, empty])}
    return batch | ({"shifted": torch.tensor(True)} if shifted else {})


def losses(case: Case) -> Iterator[Difference]:
    """All losses, their gradients and the weights of the layers."""
    given, expected, theirs = case.file("inputs"), case.file("expected"), case["scalars"]
    method = _method(case)
    student = _student(case, method, given["adversarial_offsets"])
    order = [f"{name}.weight" for name in case["kappa_order"]]
    ours = student.surface.kappa[[student.names.index(name) for name in order]]
    yield Difference(pooled({"kappa": ours}, {"kappa": expected["kappa"]}), PROJECTION)
    target, neutral = given["e_target"], given["e_neutral"]
    for prefix, group, shifted in (("", "grad", True), ("stage0/", "grad_stage0", False)):
        empty = given["e_unconditional"]
        batch = _batch(target, neutral, given["anchors"], empty, shifted=shifted)
        yield from _compared_losses(method, student, batch, theirs, prefix)
        wanted = {n.partition("/")[2]: t for n, t in expected.items() if n.startswith(f"{group}/")}
        yield from _gradients(student, wanted)
    terms = method.loss(student, {"target": target})
    terms["loss"].backward()  # type: ignore[no-untyped-call]
    gradient = student.weights["shifts"].grad
    assert gradient is not None
    yield loss_difference([terms["loss"].item()], [theirs["attacker/loss"]], LOSS)
    yield Difference(
        pooled({"shifts": gradient[0]}, {"shifts": expected["attacker_grad"]}), GRADIENT
    )


def _compared_losses(
    method: CPE, student: GateStudent, batch: Batch, theirs: Mapping[str, float], prefix: str
) -> Iterator[Difference]:
    """The erasing losses; their gradients are left at the student's weights."""
    names = {
        "loss": "loss_erasing",
        "erase": "loss_prompt_erase",
        "anchor": "loss_prompt_anchor",
        "adversarial": "loss_adv_erase",
    }
    for weight in student.weights.values():
        weight.grad = None
    terms = method.loss(student, batch)
    terms["loss"].backward()  # type: ignore[no-untyped-call]
    for ours, name in names.items():
        if ours in terms and prefix + name in theirs:
            yield loss_difference([terms[ours].item()], [theirs[prefix + name]], LOSS)


def _gradients(student: GateStudent, theirs: Tensors) -> Iterator[Difference]:
    """Of all weights together, and of the worst of them."""
    tensors = {name: weight.grad for name, weight in student.weights.items() if name != "shifts"}
    found = {name: gradient for name, gradient in tensors.items() if gradient is not None}
    ours = files.tensors(_as_gates(student, found))
    yield Difference(pooled(ours, theirs), GRADIENT)
    worst = max(pooled(ours, {name: tensor}) for name, tensor in theirs.items())
    yield Difference(worst, SMALL_GRADIENT)


def _as_gates(student: GateStudent, tensors: Tensors) -> ResidualGates:
    """Tensors like the weights, such as gradients or the weights, in the place of gates.

    The factor that files have beside ``up`` isn't in it.
    """
    rank = tensors["up"].shape[1]
    widths = torch.tensor(student.surface.widths)
    return ResidualGates.of(
        student.names, {**tensors, "up": tensors["up"] / rank, "widths": widths}
    )


def stages(case: Case) -> Iterator[Difference]:
    """Losses, weights and shifts of some steps of two erasing stages and the attack between."""
    start, theirs = case.file("inputs")["adversarial_offsets_initial"], case["scalars"]
    method = _method(case, **_lengths(case["params"]))
    student = _student(case, method, start)
    trainer, begun, batches = Trainer(method, student), _file_tensors(student), _batches(case)
    after = [name for name in case["files"] if name.startswith("adapter_after_")]
    after.sort(key=lambda name: int(name.split("_")[2]))
    for number, key in enumerate(STAGES):
        trainer.reach(method.stages[number].start, 0)
        trainer.pace(method.stages[number].start)
        if key == "attacker":
            with torch.no_grad():
                student.weights["shifts"].copy_(start[None])
        found = []
        for lr in case["schedule"][key]["lr"]:
            group = trainer.optimizer.param_groups[int(key == "attacker")]
            yield Difference(abs(group["lr"] - lr), 1e-9)
            found.append(trainer.step([next(batches)])["loss"])
        floor = case["tolerance"].get(f"{key}_losses", 0.0)
        yield loss_difference(found, theirs[key], max(LOSS, ROOM * floor))
        if key == "attacker":
            (wanted,) = case.file("expected").values()
            ours = {"shifts": student.weights["shifts"].detach()[0]}
            yield _moved({"shifts": start}, ours, {"shifts": wanted})
        else:
            ended = case.file(after.pop(0).removesuffix(".safetensors"))
            yield _moved(begun, _file_tensors(student), ended)


def _lengths(params: Mapping[str, Any]) -> dict[str, Any]:
    """Steps, learning rates and cycles of all stages."""
    return {
        "rounds": 2,
        "first_iterations": params["total_steps"],
        "later_iterations": params["total_steps"],
        "attack_iterations": params["attacker_total_steps"],
        "lr": params["base_lr"],
        "later_lr": params["base_lr"],
        "attack_lr": params["attacker_lr"],
        "lr_warmup": params["warmup"],
        "first_cycles": params["cycles"],
        "cycles": params["cycles"],
        "attack_warmup": params["attacker_warmup"],
        "attack_cycles": params["attacker_cycles"],
    }


def _batches(case: Case) -> Iterator[Batch]:
    """What each step of each stage looks at, one after the other."""
    given = case.file("inputs")
    anchors = iter(given["anchors"])
    for number, key in enumerate(STAGES):
        for template in case["schedule"][key]["templates"]:
            target = given["e_target_by_template"][template][None]
            if key == "attacker":
                yield {"target": target}
                continue
            neutral = given["e_neutral_by_template"][template][None]
            empty = given["e_unconditional"]
            yield _batch(target, neutral, next(anchors), empty, shifted=number > 0)


def _moved(begun: Tensors, ours: Tensors, theirs: Tensors) -> Difference:
    """Distance of the changes since the start."""
    own, other = (
        {name: after[name] - start for name, start in begun.items()} for after in (ours, theirs)
    )
    return Difference(pooled(own, other), UPDATE)


def _file_tensors(student: GateStudent) -> dict[str, Tensor]:
    """The trained weights as a file has them."""
    weights = {n: w.detach().clone() for n, w in student.weights.items() if n != "shifts"}
    written = files.tensors(_as_gates(student, weights))
    return {n: t for n, t in written.items() if not n.endswith(".alpha") and n != files.KEY}
