"""CPE beside its released program: gates at work, and anchors."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from conformance import cpe_training
from conformance.case import Case, Difference, Tensors, pooled
from expunge.edits.edit import Edit
from expunge.edits.residual_gates import ResidualGates, attention, openings
from expunge.errors import Unsupported
from expunge.formats import cpe as files
from expunge.methods import configured
from expunge.methods.cpe.bank import mixed
from expunge.methods.cpe.method import CPE
from expunge.models import Condition, Model

PROJECTION = 2e-6
"""How close two correct programs come, relative."""
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
        return cpe_training.stages(case)
    if "attacker_grad" in expected:
        return cpe_training.losses(case)
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
    return model.predict(given["latents"], given["timesteps"], Condition(given["embeddings"]))


@contextmanager
def _outputs(model: Model, names: tuple[str, ...]) -> Iterator[dict[str, Tensor]]:
    """Inside, collects what some layers give, by the names of their weights."""
    seen: dict[str, Tensor] = {}

    def keep(name: str, module: object, inputs: object, output: Tensor) -> None:
        seen[name] = output

    handles = [
        model.denoiser.get_submodule(name.rpartition(".")[0]).register_forward_hook(
            partial(keep, name)
        )
        for name in names
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


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
