"""Skip features of a UNet: what its way down hands over to its way up."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from expunge.models.passes import Pass


class Skip(NamedTuple):
    """Features on their way to a layer of an upper block."""

    place: tuple[int, int]
    """The number of the block and of its layer, from the middle of the UNet up."""
    features: Tensor
    """``[batch, channels, height, width]``."""
    depth: int
    """How often the layer's own features have half of the deepest ones' channels: 0 for the
    deepest, 1 for those with half of their channels, and so on."""


Reroute = Callable[[Skip], Tensor]
"""What becomes of skip features, shaped like them."""


class SkipPass(Pass):
    """An upper block that is handed other features, where ``reroute`` gives a way to change them.

    Args:
        block: a block of the UNet's way up.
        number: which one it is.
        deepest: channels of the deepest features.
        reroute: asked in every pass; ``None`` changes nothing.
    """

    def __init__(
        self, block: nn.Module, number: int, deepest: int, reroute: Callable[[], Reroute | None]
    ) -> None:
        super().__init__(block)
        self.number = number
        self.deepest = deepest
        self.reroute = reroute

    def __call__(
        self,
        hidden_states: Tensor,
        res_hidden_states_tuple: tuple[Tensor, ...],
        *args: Any,
        **kw: Any,
    ) -> Any:
        if reroute := self.reroute():
            layers: Any = self.module.resnets
            behind = [hidden_states.shape[1], *(layer.out_channels for layer in layers)]
            last = res_hidden_states_tuple[::-1]  # the last one is used first
            changed = [
                reroute(Skip((self.number, at), features, self._depth(behind[at])))
                for at, features in enumerate(last[: len(layers)])
            ]
            res_hidden_states_tuple = (*last[len(layers) :][::-1], *changed[::-1])
        return self.found(hidden_states, res_hidden_states_tuple, *args, **kw)

    def _depth(self, channels: int) -> int:
        return max(0, round(self.deepest / channels).bit_length() - 1)
