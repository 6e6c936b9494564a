"""Reading the cross-attention: what is read is right, and nothing of it stays in the model."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from expunge import Model
from expunge.models.attention import Look, cross_attention


@pytest.fixture
def run(pico: Model) -> Callable[[], Tensor]:
    """One pass of two pictures with two prompts."""
    draws = torch.Generator().manual_seed(0)
    latents = torch.randn((2, *pico.latent_shape), generator=draws)
    embeddings = pico.condition(["a picture of ghost", "dog"])
    return lambda: pico.predict(latents, torch.tensor([10, 900]), embeddings)


@torch.no_grad()
def test_maps_are_the_softmax_of_the_layers_in_the_order_of_the_pass(
    pico: Model, run: Callable[[], Tensor]
) -> None:
    inputs: dict[str, tuple[Tensor, Tensor]] = {}
    layers = {n: m for n, m in pico.denoiser.named_modules() if n.endswith(".attn2")}
    for name, layer in layers.items():
        layer.register_forward_pre_hook(
            lambda _, given, named, name=name: inputs.__setitem__(
                name, (given[0].double(), named["encoder_hidden_states"].double())
            ),
            with_kwargs=True,
        )
    with cross_attention(pico.denoiser) as maps:
        run()
    assert list(maps) == list(inputs)
    assert set(maps) == set(layers)
    for name, layer in layers.items():
        pixels, tokens = inputs[name]
        queries = pixels @ layer.to_q.weight.double().T
        keys = tokens @ layer.to_k.weight.double().T
        width = queries.shape[-1] // layer.heads
        for head in range(layer.heads):
            part = slice(head * width, (head + 1) * width)
            logits = queries[..., part] @ keys[..., part].mT / width**0.5
            assert torch.allclose(maps[name][:, head].double(), logits.softmax(-1), atol=1e-6)


def test_a_look_fits_together_and_only_what_is_read_is_kept(
    pico: Model, run: Callable[[], Tensor]
) -> None:
    def read(look: Look) -> Tensor:
        scores = (look.layer.scale * look.queries @ look.keys.mT).softmax(-1)
        maps = scores.view_as(look.attention)
        return (maps - look.attention).abs().max()

    with cross_attention(pico.denoiser, read) as worst:
        run()
    assert worst
    assert all(value.ndim == 0 and float(value) < 1e-6 for value in worst.values())


@torch.no_grad()
def test_the_model_is_as_before(pico: Model, run: Callable[[], Tensor]) -> None:
    processors = {n: type(p) for n, p in pico.denoiser.attn_processors.items()}
    before = run()
    with cross_attention(pico.denoiser) as maps:
        inside = run()
    assert torch.allclose(inside, before, atol=1e-5)
    with pytest.raises(ZeroDivisionError), cross_attention(pico.denoiser, lambda look: 1 / 0):
        run()
    assert torch.equal(run(), before)
    assert maps
    assert {n: type(p) for n, p in pico.denoiser.attn_processors.items()} == processors
    assert not any("get_attention_scores" in vars(module) for module in pico.denoiser.modules())
