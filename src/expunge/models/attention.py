"""Where a UNet looks in the prompt: its cross-attention, read while it runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn


class Projections(NamedTuple):
    """Names of the matrices of one attention."""

    query: str
    key: str
    value: str
    output: str


class Look(NamedTuple):
    """One cross-attention in one pass; all with gradients."""

    layer: Any
    """The module, with the weights that this pass has."""
    queries: Tensor
    """Of the picture, ``[batch * heads, pixels, head width]``."""
    keys: Tensor
    """Of the prompt, ``[batch * heads, tokens, head width]``."""
    attention: Tensor
    """The softmax over the prompt's tokens, ``[batch, heads, pixels, tokens]``."""

    @property
    def scale(self) -> float:
        """Of the products of queries and keys, before the softmax."""
        return float(self.layer.scale)

    def keys_of(self, rows: Tensor) -> Tensor:
        """The keys of another prompt's rows ``[batch, tokens, width]``, shaped like ``keys``."""
        keys: Tensor = self.layer.head_to_batch_dim(self.layer.to_k(rows))
        return keys


def attention(look: Look) -> Tensor:
    """The whole softmax, ``[batch, heads, pixels, tokens]``."""
    return look.attention


@contextmanager
def cross_attention(
    unet: Any, read: Callable[[Look], Tensor] = attention
) -> Iterator[dict[str, Tensor]]:
    """Collect what ``read`` makes of every cross-attention, by layer in the order of the pass.

    Only inside, and only these layers, does a pass compute a softmax that can be seen; what
    ``read`` doesn't return isn't kept. A second pass inside replaces what the first one left.
    """
    from diffusers.models.attention_processor import AttnProcessor

    seen: dict[str, Tensor] = {}
    layers: dict[str, Any] = {
        name: module for name, module in unet.named_modules() if name.endswith(".attn2")
    }
    processors = dict(unet.attn_processors)
    explicit = {f"{name}.processor": AttnProcessor() for name in layers}
    unet.set_attn_processor({**processors, **explicit})
    try:
        for name, layer in layers.items():
            _watch(name, layer, read, seen)
        yield seen
    finally:
        for layer in layers.values():
            vars(layer).pop("get_attention_scores", None)
        unet.set_attn_processor(processors)


def _watch(name: str, layer: Any, read: Callable[[Look], Tensor], seen: dict[str, Tensor]) -> None:
    scores = layer.get_attention_scores

    def watched(queries: Tensor, keys: Tensor, mask: Tensor | None = None) -> Tensor:
        softmax: Tensor = scores(queries, keys, mask)
        maps = softmax.view(-1, layer.heads, *softmax.shape[1:])
        seen[name] = read(Look(layer, queries, keys, maps))
        return softmax

    layer.get_attention_scores = watched


@contextmanager
def projections_changed(unet: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Apply ``change`` to the keys and values of the prompts, ``[batch, tokens, width]`` each."""
    handles = [
        module.register_forward_hook(lambda _, __, output: change(output))
        for name, module in unet.named_modules()
        if name.endswith((".attn2.to_k", ".attn2.to_v"))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def projections_beside(name: str) -> Projections:
    """The matrices of the attention that the parameter ``name`` belongs to."""
    layer = name.removesuffix(".weight").rpartition(".")[0]
    parts = ("to_q", "to_k", "to_v", "to_out.0")
    return Projections(*(f"{layer}.{part}.weight" for part in parts))
