"""Edits of all families on one model: what each does is defined, whatever order they came in."""

from itertools import permutations

import pytest
import torch
from torch import Tensor

from expunge import Edit, ExpungeError, Model, erase
from expunge.edits.applied import edited_weights

SETTINGS = {
    "uce": {},
    "esd": {"iterations": 2, "trajectories": 1, "num_inference_steps": 4},
    "sepce": {"iterations": 2, "trajectories": 1, "num_inference_steps": 4, "tolerance": 0.03},
    "cpe": {"rounds": 1, "first_iterations": 3, "lr_warmup": 0, "lr": 0.1},
    "spm": {"iterations": 3, "num_inference_steps": 3, "lr": 0.05, "lr_schedule": "constant"},
}
CONCEPTS = {
    "uce": "santa claus",
    "esd": "noto style",
    "sepce": "ghost",
    "cpe": "robot",
    "spm": "cat",
}


@pytest.fixture
def edits(pico: Model) -> dict[str, Edit]:
    return {name: erase(pico, CONCEPTS[name], name, **values) for name, values in SETTINGS.items()}


def predicted(model: Model, prompt: str = "a robot and a cat") -> Tensor:
    conditions = model.condition([prompt])
    latents = torch.randn(1, *model.latent_shape, generator=torch.manual_seed(0))
    with torch.no_grad():
        return model.predict(latents, 500, conditions)


def test_every_order_of_applying_draws_the_same(pico: Model, edits: dict[str, Edit]) -> None:
    drawn = []
    for order in list(permutations(edits))[::17]:
        for name in order:
            edits[name].apply(pico)
        drawn.append(predicted(pico))
        for name in order[::-1]:
            edits[name].revert(pico)
    for one in drawn[1:]:
        torch.testing.assert_close(one, drawn[0], rtol=1e-4, atol=1e-6)


def test_each_of_them_counts_and_the_sum_is_all_of_them(
    pico: Model, edits: dict[str, Edit]
) -> None:
    total = sum(list(edits.values())[1:], edits["uce"])
    with total.applied(pico):
        whole = predicted(pico)
    for edit in edits.values():
        with (total - edit).applied(pico):
            assert not torch.allclose(predicted(pico), whole, rtol=1e-5, atol=1e-8)


def test_taking_all_out_in_any_order_leaves_every_bit(pico: Model, edits: dict[str, Edit]) -> None:
    before = {name: weight.clone() for name, weight in pico.denoiser.named_parameters()}
    plain = predicted(pico)
    for edit in edits.values():
        edit.apply(pico)
    for name in ("cpe", "esd", "spm", "uce", "sepce"):
        edits[name].revert(pico)
    assert all(torch.equal(w, before[name]) for name, w in pico.denoiser.named_parameters())
    assert torch.equal(predicted(pico), plain)


def test_weights_come_first_and_gates_add_to_what_they_give(
    pico: Model, edits: dict[str, Edit]
) -> None:
    weights = edits["uce"] + edits["esd"] + edits["sepce"]
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    assert name in weights.changed
    module = pico.denoiser.get_submodule(name.rpartition(".")[0])
    wanted = edited_weights(pico, weights.components, (name,))[name]
    assert wanted is not None
    rows = pico.encode(["a robot"])

    def output() -> Tensor:
        seen: list[Tensor] = []
        handle = module.register_forward_hook(lambda *given: seen.append(given[2]))
        predicted(pico, "a robot")
        handle.remove()
        return seen[0]

    plain = output()
    with edits["cpe"].applied(pico):
        added = output() - plain
    with (weights + edits["cpe"]).applied(pico):
        both = output()
    torch.testing.assert_close(both, rows @ wanted.float().T + added)


def test_what_conflicts_is_explained(pico: Model, edits: dict[str, Edit]) -> None:
    other = erase(pico, "ghost", "uce", lamb=3.0)
    with pytest.raises(ExpungeError, match="lamb"):
        _ = edits["cpe"] + edits["uce"] + other
    released = erase(pico, "dog", "spm", **SETTINGS["spm"], rule="released")
    with pytest.raises(ExpungeError, match="rule"):
        _ = edits["uce"] + edits["spm"] + released
    with edits["cpe"].applied(pico), pytest.raises(ExpungeError, match="revert it"):
        erase(pico, "dog", "uce")
