"""CLIP's text encoder on torch alone: the rows that transformers computes, bit for bit.

Importing transformers' own takes several times as long as all else that a closed form does, so
this one reads prompts where nothing but rows is wanted. Its parameters have transformers' names
and order. A test compares the rows.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from expunge.models.hashing import Each
from expunge.models.stored import Embedding, Layer, LayerNorm, Linear, Numbers

PREFIX = "text_model."
"""Of all names in the files of older versions of transformers."""
BUFFERS = "position_ids"
"""What such files also hold, and nobody reads."""


def quick_gelu(values: Tensor) -> Tensor:
    return values * torch.sigmoid(1.702 * values)


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "quick_gelu": quick_gelu,
    "gelu": functional.gelu,
}
"""Those of Stable Diffusion 1.x and 2.x."""


class Rows(NamedTuple):
    """What the encoder gives."""

    last_hidden_state: Tensor
    """``[batch, tokens, width]``"""


class ClipText(nn.Module):
    """A text encoder from its configuration, with numbers that stay in their file.

    Args:
        config: the content of its ``config.json``.
        numbers: its parameters by name.

    Raises:
        KeyError: the configuration lacks an entry, or the activation is another one.
        ValueError: the numbers aren't those of such an encoder.
    """

    stands_for = "CLIPTextModel"

    def __init__(self, config: Mapping[str, Any], numbers: Numbers) -> None:
        super().__init__()
        self.numbers = numbers
        with torch.device("meta"):
            self.embeddings = nn.ModuleDict(
                {
                    "token_embedding": Embedding(config["vocab_size"], config["hidden_size"]),
                    "position_embedding": Embedding(
                        config["max_position_embeddings"], config["hidden_size"]
                    ),
                }
            )
            layers = [_Layer(config) for _ in range(config["num_hidden_layers"])]
            self.encoder = nn.ModuleDict({"layers": nn.ModuleList(layers)})
            self.final_layer_norm = _norm(config)
        self.to(numbers.dtype).requires_grad_(False)
        self.config = SimpleNamespace(**config)
        old = any(name.startswith(PREFIX) for name in numbers.tensors)
        self._prefix = PREFIX if old else ""
        self._check_shapes()
        for name, module in self.named_modules():
            if isinstance(module, Layer):
                module.numbers, module.prefix = numbers, f"{self._prefix}{name}."

    def _check_shapes(self) -> None:
        wanted = {self._prefix + name: tuple(one.shape) for name, one in self.named_parameters()}
        slots = self.numbers.tensors.slots.items()
        if wanted != {n: slot.shape for n, slot in slots if not n.endswith(BUFFERS)}:
            raise ValueError("other weights than those of a text encoder of CLIP")

    def weights(self) -> Each:
        """The numbers of all parameters in their order, without names."""
        names = [self._prefix + name for name, _ in self.named_parameters()]
        return Each([("", partial(self.numbers, name)) for name in names], self.numbers.stamp)

    @property
    def device(self) -> torch.device:
        return self.numbers.device

    @property
    def dtype(self) -> torch.dtype:
        return self.numbers.dtype

    def get_input_embeddings(self) -> nn.Module:
        """The table of tokens."""
        return self.embeddings["token_embedding"]

    def forward(self, input_ids: Tensor, attention_mask: None = None) -> Rows:
        """Rows of token ids ``[batch, tokens]``; padding counts like all else."""
        places = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        rows = self.embeddings["token_embedding"](input_ids)
        rows = rows + self.embeddings["position_embedding"](places)
        layers: Any = self.encoder["layers"]
        for layer in layers:
            rows = layer(rows)
        found = Rows(self.final_layer_norm(rows))
        self.numbers.check()
        return found


class _Layer(nn.Module):
    """Attention to what stands before, then two linear layers."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width, inner = config["hidden_size"], config["intermediate_size"]
        self.heads: int = config["num_attention_heads"]
        self.activation = ACTIVATIONS[config["hidden_act"]]
        names = ("k_proj", "v_proj", "q_proj", "out_proj")
        self.self_attn = nn.ModuleDict({name: Linear(width, width) for name in names})
        self.layer_norm1 = _norm(config)
        self.mlp = nn.ModuleDict({"fc1": Linear(width, inner), "fc2": Linear(inner, width)})
        self.layer_norm2 = _norm(config)

    def forward(self, rows: Tensor) -> Tensor:
        rows = rows + self._attention(self.layer_norm1(rows))
        inner = self.activation(self.mlp["fc1"](self.layer_norm2(rows)))
        answer: Tensor = rows + self.mlp["fc2"](inner)
        return answer

    def _attention(self, rows: Tensor) -> Tensor:
        query, key, value = (
            self.self_attn[name](rows).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        read = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        answer: Tensor = self.self_attn["out_proj"](read.transpose(1, 2).flatten(2))
        return answer


def _norm(config: Mapping[str, Any]) -> LayerNorm:
    return LayerNorm(config["hidden_size"], eps=config["layer_norm_eps"])
