"""Sizes of prompts, and of the keys and values that read them."""

from typing import NamedTuple

from expunge import Model


class Sizes(NamedTuple):
    """What the time of most work depends on."""

    width: int
    """Of a row of a prompt."""
    tokens: int
    """Rows of a prompt."""
    outputs: tuple[int, ...]
    """Of each key and value."""

    @classmethod
    def of(cls, model: Model) -> "Sizes":
        names = model.select("cross_attention.kv")
        outputs = tuple(len(model.base_weight(name)) for name in names)
        return cls(model.text_width, model.window, outputs)

    @property
    def weights(self) -> int:
        """Bytes of all keys and values."""
        return 4 * sum(self.outputs) * self.width


SIZES = {
    "sd14": Sizes(768, 77, (*[320] * 4, *[640] * 4, *[1280] * 12, *[640] * 6, *[320] * 6)),
    "small": Sizes(64, 16, (*[16] * 6, *[32] * 2)),
}
"""Those of Stable Diffusion 1.4, and small ones, to see in a second that a benchmark runs."""
