"""Gates: opened once for a prompt, gone without a trace, and the pipeline stays the user's."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from expunge import Edit, Model, erase
from expunge.edits import reading
from expunge.edits.base import Base
from expunge.edits.component import Component, Provenance
from expunge.edits.gates import Addition, Tokens
from expunge.errors import ExpungeError
from expunge.formats import lora, merged, published
from expunge.models import Condition


@dataclass(frozen=True, eq=False)
class Lift:
    """Adds ``strength`` times the mean of the first row of the conditions."""

    form: ClassVar[str] = "lift"
    reads_text: ClassVar[bool] = True
    reads_tokens: ClassVar[bool] = True
    names: tuple[str, ...]
    strength: Tensor
    opened: ClassVar[list[list[Sequence[int] | None]]] = []

    @classmethod
    def joined(cls, gates: "Sequence[Lift]") -> "Lift":
        return cls(gates[0].names, sum(gate.strength for gate in gates))

    @classmethod
    def of(cls, names: tuple[str, ...], tensors: Mapping[str, Tensor]) -> "Lift":
        return cls(names, tensors["strength"])

    def tensors(self) -> dict[str, Tensor]:
        return {"strength": self.strength}

    def additions(self, rows: Tensor, tokens: Tokens) -> Mapping[str, Addition]:
        self.opened.append(list(tokens))
        lift = self.strength * rows[:, 0].mean(1)
        return dict.fromkeys(self.names, lambda inputs: lift.view(-1, 1, 1))


def edit(model: Model, strength: float = 0.5) -> Edit:
    names = model.select("cross_attention.kv")
    provenance = Provenance(
        method="lift",
        settings={},
        concepts=(),
        keep=(),
        seed=0,
        base=Base.of(model, names, reads_text=True),
        versions={},
    )
    return Edit((Component(Lift(names, torch.tensor(strength)), provenance),))


@pytest.fixture(autouse=True)
def forget() -> None:
    Lift.opened.clear()


def predicted(model: Model, conditions: Condition) -> Tensor:
    latents = torch.randn(len(conditions), *model.latent_shape, generator=torch.manual_seed(0))
    with torch.no_grad():
        return model.predict(latents, 5, conditions)


def test_opened_once_for_all_steps_of_a_prompt(pico: Model) -> None:
    conditions = pico.condition(["a cat", "a dog"])
    with edit(pico).applied(pico):
        first = predicted(pico, conditions)
        again = predicted(pico, conditions)
        assert len(Lift.opened) == 1
        predicted(pico, pico.condition(["a cat", "a dog"]))
        assert len(Lift.opened) == 2
    assert torch.equal(first, again)
    assert not torch.equal(first, predicted(pico, conditions))


def test_new_numbers_in_the_same_tensor_open_them_again(pico: Model) -> None:
    conditions = pico.condition(["a cat", "a dog"])
    with edit(pico).applied(pico):
        predicted(pico, conditions)
        conditions.rows.mul_(2)
        changed = predicted(pico, conditions)
        assert torch.equal(changed, predicted(pico, conditions.map(Tensor.clone)))


def test_the_additions_reach_every_key_and_value(pico: Model) -> None:
    conditions, got = pico.condition(["a cat"]), {}
    names = pico.select("cross_attention.kv")
    modules = [pico.denoiser.get_submodule(name.rpartition(".")[0]) for name in names]
    plain = [module(conditions.rows) for module in modules]
    with edit(pico).applied(pico):
        handles = [
            module.register_forward_hook(lambda m, _, output: got.update({m: output}))
            for module in modules
        ]
        predicted(pico, conditions)
        for handle in handles:
            handle.remove()
    lift = 0.5 * conditions.rows[:, 0].mean()
    for module, before in zip(modules, plain, strict=True):
        torch.testing.assert_close(got[module], before + lift)


def test_reverting_leaves_no_trace(pico: Model) -> None:
    conditions = pico.condition(["a cat"])
    before, attributes = predicted(pico, conditions), {n: set(vars(m)) for n, m in modules(pico)}
    one, two = edit(pico), edit(pico, 0.25)
    one.apply(pico)
    two.apply(pico)
    both = predicted(pico, conditions)
    one.revert(pico)
    assert not torch.equal(both, predicted(pico, conditions))
    two.revert(pico)
    assert torch.equal(before, predicted(pico, conditions))
    assert attributes == {n: set(vars(m)) for n, m in modules(pico)}
    assert not pico.denoiser._forward_pre_hooks
    assert not pico.pipe.text_encoder._forward_hooks


def modules(model: Model) -> list[tuple[str, torch.nn.Module]]:
    return list(model.denoiser.named_modules())


def test_two_edits_of_a_form_act_as_one(pico: Model) -> None:
    conditions = pico.condition(["a cat"])
    with (edit(pico) + edit(pico, 0.25)).applied(pico):
        both = predicted(pico, conditions)
    with edit(pico, 0.75).applied(pico):
        assert torch.equal(both, predicted(pico, conditions))


def test_they_act_on_what_changed_weights_give(pico: Model) -> None:
    conditions = pico.condition(["a cat"])
    weights = erase(pico, "dog", "uce")
    module = pico.denoiser.get_submodule(weights.names[0].rpartition(".")[0])
    outputs = {}
    for name, total in (("weights", weights), ("gates", edit(pico)), ("all", weights + edit(pico))):
        with total.applied(pico):
            predicted(pico, conditions)
            outputs[name] = module(conditions.rows).detach()
    plain = module(conditions.rows).detach()
    torch.testing.assert_close(
        outputs["all"] - plain, outputs["weights"] - plain + outputs["gates"] - plain
    )


def test_the_pipeline_opens_them_with_the_tokens_of_the_prompts(pico: Model) -> None:
    with edit(pico).applied(pico):
        pico.pipe("a cat", negative_prompt="a dog", num_inference_steps=3, output_type="latent")
    assert Lift.opened == [[tuple(pico.tokens("a dog")), tuple(pico.tokens("a cat"))]]


def test_tokens_of_what_is_remembered_are_known_and_others_are_not(pico: Model) -> None:
    conditions = pico.condition(["a cat"])
    pico.remember({"a cat": conditions})
    with edit(pico).applied(pico):
        predicted(pico, conditions)
        predicted(pico, Condition(conditions.rows + 1))
    assert Lift.opened == [[tuple(pico.tokens("a cat"))], [None]]


def test_gradients_reach_the_conditions(pico: Model) -> None:
    rows = pico.encode(["a cat"]).requires_grad_()
    latents = torch.randn(1, *pico.latent_shape)
    with edit(pico).applied(pico):
        for _ in range(2):  # the graph of the first pass is gone in the second
            pico.predict(latents, 5, Condition(rows)).sum().backward()
        with_gates = rows.grad.clone() / 2
    rows.grad = None
    pico.predict(latents, 5, Condition(rows)).sum().backward()
    assert not torch.allclose(with_gates, rows.grad)


def test_a_copy_of_the_model_keeps_its_own_gates(pico: Model) -> None:
    conditions = pico.condition(["a cat"])
    gated = edit(pico)
    gated.apply(pico)
    expected = predicted(pico, conditions)
    twin = copy.deepcopy(pico.denoiser)
    gated.revert(pico)
    latents = torch.randn(1, *pico.latent_shape, generator=torch.manual_seed(0))
    with torch.no_grad():
        assert torch.equal(twin(latents, 5, conditions.rows).sample, expected)


def test_inference_mode_is_right_if_slower(pico: Model) -> None:
    conditions = pico.condition(["a cat"])
    with edit(pico).applied(pico):
        expected = predicted(pico, conditions)
        with torch.inference_mode():
            assert torch.equal(predicted(pico, conditions.map(Tensor.clone)), expected)


def test_no_weights_can_do_the_same(pico: Model, tmp_path) -> None:
    for write in (
        lambda: lora.save(edit(pico), pico, tmp_path / "a.safetensors"),
        lambda: published.save(edit(pico), pico, tmp_path / "a.safetensors"),
        lambda: merged.save_pipeline(edit(pico), pico, tmp_path / "a"),
        lambda: merged.save_checkpoint(edit(pico), pico, tmp_path / "a.safetensors"),
    ):
        with pytest.raises(ExpungeError, match="gates"):
            write()
    assert not list(tmp_path.iterdir())


def test_the_reader_forgets_the_oldest_prompts(pico: Model, monkeypatch) -> None:
    monkeypatch.setattr(reading.Reader, "LIMIT", 2)
    with edit(pico).applied(pico):
        conditions = [pico.condition([words]) for words in ("a cat", "a dog", "a hat")]
        for one in conditions:
            predicted(pico, one)
        predicted(pico, conditions[0].map(Tensor.clone))
    assert Lift.opened[-1] == [None]
