"""A Stable Diffusion whose text encoder is in memory and whose denoiser stays in its file.

A closed form reads prompts and some base weights. For that, the names and shapes in the file's
header stand in for the denoiser, and ``Weights.base`` reads a tensor when it is asked for. Neither
diffusers nor transformers' networks are imported, which takes longer than the work.
"""

import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from expunge.errors import ExpungeError
from expunge.models.clip import ClipText
from expunge.models.sources import Source
from expunge.models.stored import Conv2d, LayerNorm, Linear, Numbers
from expunge.models.tokenizing import ClipTokenizer
from expunge.tensors import Unread

CLASSES = {
    "_class_name": "StableDiffusionPipeline",
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
"""The entries of a ``model_index.json`` that are known here."""
ENTRIES = {"in_channels", "sample_size", "cross_attention_dim", "layers_per_block"}
"""What must be in the denoiser's configuration, as diffusers' own defaults aren't known here."""
ORDER = (
    *("conv_in", "time_embedding", "down_blocks", "up_blocks", "mid_block"),
    *("conv_norm_out", "conv_out"),
    *("attentions", "resnets", "downsamplers", "upsamplers", "conv"),
    *("linear_1", "linear_2", "norm", "proj_in", "transformer_blocks", "proj_out"),
    *("norm1", "conv1", "attn1", "time_emb_proj", "norm2", "conv2", "attn2"),
    *("conv_shortcut", "norm3", "ff", "net", "proj", "to_q", "to_k", "to_v", "to_out"),
    *("weight", "bias"),
)
"""Names of a UNet's modules, those beside each other in diffusers' order."""

STEM = "diffusion_pytorch_model"
"""Of the names of files in which diffusers keeps a network."""
LACKING = "the model was loaded to read prompts only, and this needs its {}; load it whole"

Shapes = Mapping[str, tuple[int, ...]]


class Config(dict[str, Any]):
    """A configuration whose entries are attributes too, as those of diffusers are."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Skeleton(nn.Module):
    """The layers of a network, without their numbers.

    Args:
        numbers: of its parameters, by name.
        config: the content of its ``config.json``.
        names: of the parameters, in their order.
    """

    def __init__(self, numbers: Numbers, config: Config, names: Iterable[str]) -> None:
        super().__init__()
        self.numbers, self.config = numbers, config
        self.stands_for: str = config["_class_name"]
        shapes = {name: numbers.tensors.slots[name].shape for name in names}
        for owner, own in _owners(shapes).items():
            module: nn.Module = self
            *path, last = owner.split(".")
            for part in path:
                if part not in module._modules:
                    module.add_module(part, nn.Module())
                module = module.get_submodule(part)
            module.add_module(last, _layer(own, numbers.dtype).requires_grad_(False))

    def forward(self, *args: Any, **options: Any) -> Any:
        raise ExpungeError(LACKING.format("UNet"))


def _owners(shapes: Shapes) -> dict[str, dict[str, tuple[int, ...]]]:
    """The parameters of each layer."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        owner, _, own = name.rpartition(".")
        found.setdefault(owner, {})[own] = shape
    return found


def _layer(shapes: Shapes, dtype: torch.dtype) -> nn.Module:
    """A layer with parameters of these shapes: linear, a convolution, or else a norm."""
    weight: Any = shapes["weight"]
    more: Any = {"bias": "bias" in shapes, "device": "meta", "dtype": dtype}
    if len(weight) == 4:
        return Conv2d(weight[1], weight[0], weight[2:], **more)
    if len(weight) == 2:
        return Linear(weight[1], weight[0], **more)
    return LayerNorm(weight, **more)


class OnDisk:
    """What stands in for the pipeline: the same parts by the same names, as far as they are read.

    Args:
        source: a folder.
        dtype: precision of the weights.
        device: where prompts are read.

    Raises:
        KeyError, ValueError, OSError, RuntimeError, ExpungeError: it isn't a folder that is known
            here.
    """

    maybe_convert_prompt = None
    """Prompts go to the tokenizer as they are."""

    def __init__(self, source: Source, dtype: torch.dtype, device: torch.device) -> None:
        self.folder, self.variant, self.dtype = Path(source.place), source.variant, dtype
        self._execution_device = device
        index = _json(self.folder / "model_index.json")
        if any(index[name] != wanted for name, wanted in CLASSES.items()):
            raise ValueError("made of other parts")
        encoder = self._opened("text_encoder", "model")
        self.text_encoder = ClipText(self._config("text_encoder"), encoder)
        self.tokenizer = self._tokenizer()
        denoiser = self._opened("unet", STEM)
        names = sorted(denoiser.tensors, key=_place)
        self.unet = Skeleton(denoiser, self._config("unet"), names)
        if ENTRIES - self.unet.config.keys():
            raise ValueError("a configuration with entries left out")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise ExpungeError(LACKING.format(name))

    @cached_property
    def vae(self) -> Skeleton:
        numbers = self._opened("vae", STEM)
        return Skeleton(numbers, self._config("vae"), numbers.tensors)

    @cached_property
    def vae_scale_factor(self) -> int:
        """Pixels a latent is wide."""
        scale: int = 2 ** (len(self._config("vae")["block_out_channels"]) - 1)
        return scale

    @property
    def components(self) -> dict[str, Any]:
        return {"vae": self.vae, "text_encoder": self.text_encoder, "unet": self.unet}

    def _tokenizer(self) -> ClipTokenizer:
        tokenizer = ClipTokenizer(self.folder / "tokenizer")
        if any(token.endswith("_1") for token in tokenizer.added_tokens_encoder):
            raise ValueError("learnt tokens of several vectors, which the pipeline writes out")
        return tokenizer

    def _opened(self, part: str, stem: str) -> Numbers:
        """The file of a network: that of the variant if it has one, as in diffusers."""
        names = [f"{stem}.{self.variant}"] * bool(self.variant) + [stem]
        paths = [self.folder / part / f"{name}.safetensors" for name in names]
        found = Unread(next((path for path in paths if path.is_file()), paths[-1]))
        return Numbers(found, self.dtype, self._execution_device)

    def _config(self, part: str) -> Config:
        found = Config(_json(self.folder / part / "config.json"))
        if "quantization_config" in found or found.get("use_attention_mask"):
            raise ValueError("weights that are quantized, or an encoder that wants a mask")
        return found


def _place(name: str) -> tuple[int, ...]:
    """Where a parameter stands among those of a UNet.

    Raises:
        ValueError: it is none of a UNet that is known here.
    """
    return tuple(int(p) if p.isdigit() else ORDER.index(p) for p in name.split("."))


def _json(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"{path}: no table")
    return found


def opened(source: Source, dtype: torch.dtype, device: torch.device) -> OnDisk | None:
    """What stands in for the pipeline of a folder; none if it must be loaded whole."""
    if not source.local or source.single:
        return None
    try:
        return OnDisk(source, dtype, device)
    except (KeyError, ValueError, OSError, RuntimeError, ExpungeError):
        return None
