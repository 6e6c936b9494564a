"""What the user has put into the pipeline stays and works; what would hide an edit is refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from diffusers.models.attention_processor import AttnProcessor
from peft import LoraConfig
from torch import Tensor, nn

from expunge import Concept, Edit, ExpungeError, Model, erase
from expunge.edits.applied import Applied
from expunge.testing import membrane

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
GHOST = Concept(target="ghost", anchor="dog")


@torch.no_grad()
def predicted(model: Model) -> Tensor:
    latents = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    return model.predict(latents, torch.tensor([500, 20]), model.condition(["a ghost", "a cat"]))


@pytest.fixture
def edit(pico: Model) -> Edit:
    """Changed weights, and gates on all layers."""
    return erase(pico, GHOST, "uce") + membrane(pico, GHOST)


def state(model: Model) -> tuple[dict[str, Tensor], dict[str, set[str]]]:
    weights = {name: weight.clone() for name, weight in model.denoiser.named_parameters()}
    return weights, {name: set(vars(module)) for name, module in model.denoiser.named_modules()}


def untouched(model: Model, before: tuple[dict[str, Tensor], dict[str, set[str]]]) -> bool:
    weights, attributes = state(model)
    same = all(torch.equal(weight, before[0][name]) for name, weight in weights.items())
    return same and attributes == before[1] and Applied.to(model).components == ()


Put = Callable[[nn.Module, list[int]], None]


def own_forward(module: nn.Module, calls: list[int]) -> None:
    """A pass put on the module itself, which doubles what comes out."""
    found = module.forward

    def forward(*args: Any, **options: Any) -> Any:
        calls.append(1)
        output = found(*args, **options)
        return 2 * output if isinstance(output, Tensor) else output

    module.forward = forward  # type: ignore[method-assign]


class Doubling(ModelHook):  # type: ignore[misc]
    def __init__(self, calls: list[int]) -> None:
        self.calls = calls

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        self.calls.append(1)
        return 2 * output if isinstance(output, Tensor) else output


def of_accelerate(module: nn.Module, calls: list[int]) -> None:
    add_hook_to_module(module, Doubling(calls))


def of_torch(module: nn.Module, calls: list[int]) -> None:
    def hook(module: nn.Module, given: Any, output: Any) -> Any:
        calls.append(1)
        return 2 * output if isinstance(output, Tensor) else output

    module.register_forward_hook(hook)


@pytest.mark.parametrize("place", ["", LAYER])
@pytest.mark.parametrize("put", [own_forward, of_accelerate, of_torch])
def test_hooks_work_under_an_edit_and_are_there_after_it(
    pico: Model, edit: Edit, put: Put, place: str
) -> None:
    with edit.applied(pico):
        unhooked = predicted(pico)
    calls: list[int] = []
    module = pico.denoiser.get_submodule(place)
    put(module, calls)
    before, forward, plain = state(pico), vars(module).get("forward"), predicted(pico)
    calls.clear()
    for _ in range(2):
        with edit.applied(pico):
            edited = predicted(pico)
            assert calls
            calls.clear()
        assert untouched(pico, before)
        assert vars(module).get("forward") is forward
        assert torch.equal(predicted(pico), plain)
        assert calls
        calls.clear()
    assert not torch.allclose(edited, plain, atol=1e-4)
    assert torch.allclose(edited, unhooked, atol=1e-5) == (not place)


def test_a_hook_that_is_put_in_meanwhile_stays(pico: Model, edit: Edit) -> None:
    plain, calls = predicted(pico), []
    module = pico.denoiser.get_submodule(LAYER)
    edit.apply(pico)
    edited = predicted(pico)
    of_accelerate(module, calls)
    edit.revert(pico)
    assert not torch.equal(predicted(pico), plain)  # it doubles what comes out
    assert calls
    remove_hook_from_module(module)
    assert torch.equal(predicted(pico), plain)
    with edit.applied(pico):
        torch.testing.assert_close(predicted(pico), edited, rtol=1e-4, atol=1e-5)
    assert torch.equal(predicted(pico), plain)


def test_attention_processors_of_ones_own_stay(pico: Model, edit: Edit) -> None:
    with edit.applied(pico):
        unhooked = predicted(pico)
    calls: list[int] = []

    class Counting(AttnProcessor):  # type: ignore[misc]
        def __call__(self, *args: Any, **options: Any) -> Any:
            calls.append(1)
            return super().__call__(*args, **options)

    pico.denoiser.set_attn_processor(Counting())
    before, plain = state(pico), predicted(pico)
    calls.clear()
    with edit.applied(pico):
        torch.testing.assert_close(predicted(pico), unhooked, rtol=1e-4, atol=1e-5)
        assert len(calls) == len(pico.denoiser.attn_processors)
    assert untouched(pico, before)
    assert {type(one) for one in pico.denoiser.attn_processors.values()} == {Counting}
    assert torch.equal(predicted(pico), plain)


def loaded_lora(model: Model) -> None:
    model.denoiser.add_adapter(LoraConfig(r=2, target_modules=["to_k"]))


def fused(model: Model) -> None:
    model.pipe.fuse_qkv_projections(vae=False)


@pytest.mark.parametrize(
    ("put", "reason"),
    [
        (loaded_lora, r"LoRA adapters loaded.*unload_lora_weights"),
        (fused, r"projections are fused.*unfuse_qkv_projections"),
    ],
)
def test_where_an_edit_would_not_show_it_is_refused(
    pico: Model, edit: Edit, put: Callable[[Model], None], reason: str
) -> None:
    put(pico)
    before = state(pico)
    for refused in (
        lambda: edit.apply(pico),
        lambda: pico.select("cross_attention.kv"),
        lambda: erase(pico, GHOST, "uce"),
    ):
        with pytest.raises(ExpungeError, match=reason):
            refused()
        assert untouched(pico, before)


def test_after_it_is_undone_edits_work_again(pico: Model, edit: Edit) -> None:
    with edit.applied(pico):
        wanted = predicted(pico)
    loaded_lora(pico)
    pico.denoiser.unload_lora()
    with edit.applied(pico):
        assert torch.equal(predicted(pico), wanted)
    fused(pico)
    pico.pipe.unfuse_qkv_projections(vae=False)
    with edit.applied(pico):
        assert torch.equal(predicted(pico), wanted)


def test_offloaded_weights_are_refused_before_anything_is_touched(pico: Model, edit: Edit) -> None:
    first, last = edit.changed[0], edit.changed[-1]
    owner = pico.denoiser.get_submodule(last.rpartition(".")[0])
    owner.weight = nn.Parameter(owner.weight.to("meta"), requires_grad=False)
    kept = pico.denoiser.get_parameter(first).clone()
    with pytest.raises(ExpungeError, match=r"weights are offloaded.*sequential CPU offload"):
        edit.apply(pico)
    assert torch.equal(pico.denoiser.get_parameter(first), kept)
    assert not any("forward" in vars(module) for module in pico.denoiser.modules())
    assert Applied.to(pico).components == ()
