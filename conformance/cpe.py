"""CPE beside its released program: gates, losses, gradients, stages, anchors."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from conformance.case import Case, Difference, Tensors, loss_difference, pooled
from expunge.concepts import Concept, Policy
from expunge.edits.edit import Edit
from expunge.edits.residual_gates import ResidualGates, attention, openings
from expunge.errors import Unsupported
from expunge.formats import cpe as files
from expunge.method.batch import Batch
from expunge.methods import configured
from expunge.methods.cpe.bank import mixed
from expunge.methods.cpe.method import CPE
from expunge.methods.cpe.student import GateStudent
from expunge.models import Model
from expunge.training.loop import Trainer

LOSS, PROJECTION, GRADIENT, SMALL_GRADIENT, UPDATE = 5e-6, 2e-6, 2e-5, 2e-4, 1e-3
"""How close two correct programs come, relative."""
ROOM = 5
"""How much further we may be from the single-precision original than it is from exact numbers."""
STAGES = ("erase_stage0", "attacker", "erase_stage1")
"""What the training cases call the first three stages."""
LOOKED_AT = 5
"""The token whose attention the forward cases store."""


def checks(case: Case) -> Iterator[Difference]:
    """What the case is about, by the tensors that it has."""
    given, expected = case.file("inputs"), case.file("expected")
    if "bank" in given:
        return mixing(case)
    if "winner" in expected:
        return forward(case)
    if "adversarial_offsets_initial" in given:
        return training(case)
    if "attacker_grad" in expected:
        return losses(case)
    raise Unsupported(f"cpe: no check for {case.get('variant')}")


# --- forward


def forward(case: Case) -> Iterator[Difference]:
    """Gates, winners, keys and values, and the UNet's output, with the adapters at work."""
    model, given, expected = case.model(), case.file("inputs"), case.file("expected")
    listed = [name for name in case["files"] if name.startswith("concept_")]
    ordered = sorted(listed, key=lambda name: int(name.removesuffix(".safetensors")[8:]))
    parts = [files.load(case.folder / name, model) for name in ordered]
    edit = Edit(tuple(component for part in parts for component in part.components))
    gates = ResidualGates.joined([_gates(part.payload) for part in edit.components])
    rows = given["embeddings"]
    opened = [gates.opened(one) for one in rows]
    yield Difference(
        float((torch.stack([one.winner for one in opened]) != expected["winner"]).sum()), 0.0
    )
    maps = (gates.query, gates.key)
    ours = {
        "gates": torch.stack([openings(one, *maps, gates.gate) for one in rows]),
        "attention_row0": torch.stack([attention(one, *maps)[:, LOOKED_AT] for one in rows]),
        "winning_gate": torch.stack([one.opening for one in opened]),
        "edited_embedding": torch.stack([one.edited for one in opened]),
        "unet_output_plain": _predicted(model, given),
    }
    with edit.applied(model), _outputs(model, gates.names) as seen:
        ours["unet_output"] = _predicted(model, given)
    ours |= {f"kv/{name.removesuffix('.weight')}": output for name, output in seen.items()}
    for name, theirs in expected.items():
        if name != "winner":
            yield Difference(pooled(ours, {name: theirs}), PROJECTION)


def _gates(payload: object) -> ResidualGates:
    assert isinstance(payload, ResidualGates)
    return payload


@torch.no_grad()
def _predicted(model: Model, given: Tensors) -> Tensor:
    return model.predict_noise(given["latents"], given["timesteps"], given["embeddings"])


class _outputs:
    """Collects what some layers give, by the names of their weights."""

    def __init__(self, model: Model, names: tuple[str, ...]) -> None:
        self.modules = {name: model.unet.get_submodule(name.rpartition(".")[0]) for name in names}
        self.seen: dict[str, Tensor] = {}

    def __enter__(self) -> dict[str, Tensor]:
        self.handles = [
            module.register_forward_hook(self._hook(name)) for name, module in self.modules.items()
        ]
        return self.seen

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _hook(self, name: str) -> Any:
        def keep(module: object, inputs: object, output: Tensor) -> None:
            self.seen[name] = output

        return keep


# --- training


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
    with torch.no_grad():
        for name, value in start.items():
            student.weights[name].copy_(value)
        student.weights["shifts"].copy_(shifts[None])
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


def training(case: Case) -> Iterator[Difference]:
    """Losses, weights and shifts of some steps of two erasing stages and the attack between."""
    params, given, theirs = case["params"], case.file("inputs"), case["scalars"]
    method = _method(
        case,
        rounds=2,
        first_iterations=params["total_steps"],
        later_iterations=params["total_steps"],
        attack_iterations=params["attacker_total_steps"],
        lr=params["base_lr"],
        later_lr=params["base_lr"],
        attack_lr=params["attacker_lr"],
        lr_warmup=params["warmup"],
        first_cycles=params["cycles"],
        cycles=params["cycles"],
        attack_warmup=params["attacker_warmup"],
        attack_cycles=params["attacker_cycles"],
    )
    student = _student(case, method, given["adversarial_offsets_initial"])
    trainer = Trainer(method, student)
    begun, anchors = _file_tensors(student), list(given["anchors"])
    after = [name for name in case["files"] if name.startswith("adapter_after_")]
    after.sort(key=lambda name: int(name.split("_")[2]))
    for number, key in enumerate(STAGES):
        trainer.reach(method.stages[number].start, 0)
        trainer.pace(method.stages[number].start)
        if number == 1:
            with torch.no_grad():
                student.weights["shifts"].copy_(given["adversarial_offsets_initial"][None])
        found = []
        for template, lr in zip(
            *(case["schedule"][key][k] for k in ("templates", "lr")), strict=True
        ):
            group = trainer.optimizer.param_groups[int(number == 1)]
            yield Difference(abs(group["lr"] - lr), 1e-9)
            target = given["e_target_by_template"][template][None]
            batch: Batch = {"target": target}
            if number != 1:
                neutral = given["e_neutral_by_template"][template][None]
                empty = given["e_unconditional"]
                batch = _batch(target, neutral, anchors.pop(0), empty, shifted=number > 0)
            found.append(trainer.step([batch])["loss"])
        floor = case["tolerance"].get(f"{key}_losses", 0.0)
        yield loss_difference(found, theirs[key], max(LOSS, ROOM * floor))
        if number == 1:
            start = given["adversarial_offsets_initial"]
            (wanted,) = case.file("expected").values()
            ours = student.weights["shifts"].detach()[0] - start
            yield Difference(pooled({"shifts": ours}, {"shifts": wanted - start}), UPDATE)
        else:
            ended = case.file(after.pop(0).removesuffix(".safetensors"))
            change = {name: ended[name] - begun[name] for name in begun}
            ours_now = _file_tensors(student)
            moved = {name: ours_now[name] - begun[name] for name in begun}
            yield Difference(pooled(moved, change), UPDATE)


def _file_tensors(student: GateStudent) -> dict[str, Tensor]:
    """The trained weights as a file has them."""
    weights = {n: w.detach().clone() for n, w in student.weights.items() if n != "shifts"}
    written = files.tensors(_as_gates(student, weights))
    return {n: t for n, t in written.items() if not n.endswith(".alpha") and n != files.KEY}


# --- anchors


def mixing(case: Case) -> Iterator[Difference]:
    """Noise and mixing of a bank's embeddings."""
    given, expected = case.file("inputs"), case.file("expected")
    method = configured("cpe", fidelity="original")
    assert isinstance(method, CPE)
    rows = given["bank"][given["indices"].long()]
    ours = mixed(rows, given["gaussian"], given["mixing"], method.noise)
    theirs = expected["anchors"]
    yield Difference(pooled({"anchors": ours}, {"anchors": theirs}), PROJECTION)
