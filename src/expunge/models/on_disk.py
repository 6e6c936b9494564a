"""A Stable Diffusion whose text encoder is in memory and whose denoiser stays in its file.

A closed form reads prompts and some base weights. For that, the names and shapes in the file's
header stand in for the denoiser, and ``Weights.base`` reads a tensor when it is asked for. Neither
diffusers nor transformers' networks are imported, which takes longer than the work.
"""

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from expunge.errors import ExpungeError
from expunge.models.clip import ClipText, Conv2d, LayerNorm, Linear
from expunge.models.sources import Source
from expunge.models.tokenizing import ClipTokenizer

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

LACKING = "the model was loaded to read prompts only, and this needs its {}; load it whole"

Shapes = Mapping[str, tuple[int, ...]]


class Tensors:
    """The tensors of a safetensors file, read one at a time.

    Raises:
        SafetensorError: it is no such file, or cut short.
        OSError: it can't be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._state = self._now()
        file: Any = safe_open(path, framework="pt")
        names = list(file.keys())
        self.shapes: Shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
        self._file = file

    def __call__(self, name: str) -> Tensor:
        """A tensor as the file has it.

        Raises:
            ExpungeError: the file isn't what it was when it was opened.
        """
        value: Tensor = self._file.get_tensor(name)
        self.check()
        return value

    def check(self) -> None:
        """Check that the file is what it was when it was opened.

        Its tensors are mapped into memory: where it is written into, they change.

        Raises:
            ExpungeError: it isn't.
        """
        if self._now() != self._state:
            raise ExpungeError(f"{self.path}: was changed while it was read; run this again")

    def _now(self) -> tuple[int, ...]:
        """What tells whether the file is still the same."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return ()
        return found.st_ino, found.st_size, found.st_mtime_ns


class Config(dict[str, Any]):
    """A configuration whose entries are attributes too, as those of diffusers are."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Skeleton(nn.Module):
    """The layers of a network, without their numbers.

    ``read`` gives the numbers of a parameter, on ``device`` and in the precision of the network.
    """

    def __init__(
        self, tensors: Tensors, config: Config, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        self.tensors, self.config, self.where = tensors, config, device
        self.stands_for: str = config["_class_name"]
        for owner, shapes in _owners(tensors.shapes).items():
            module: nn.Module = self
            *path, last = owner.split(".")
            for part in path:
                if part not in module._modules:
                    module.add_module(part, nn.Module())
                module = module.get_submodule(part)
            module.add_module(last, _layer(shapes, dtype).requires_grad_(False))

    def read(self, name: str) -> Tensor:
        parameter = self.get_parameter(name)
        return self.tensors(name).to(self.where, parameter.dtype)

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
        KeyError, ValueError, OSError, RuntimeError, SafetensorError: it isn't a folder that is
            known here.
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
        values = {name: encoder(name).to(device, dtype) for name in encoder.shapes}
        self.text_encoder = ClipText(self._config("text_encoder"), values, encoder.check)
        self.text_encoder.requires_grad_(False).eval()
        self.tokenizer = self._tokenizer()
        self.unet = self._skeleton("unet", sorted_as_built=True)
        if ENTRIES - self.unet.config.keys():
            raise ValueError("a configuration with entries left out")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise ExpungeError(LACKING.format(name))

    @cached_property
    def vae(self) -> Skeleton:
        return self._skeleton("vae")

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

    def _skeleton(self, part: str, *, sorted_as_built: bool = False) -> Skeleton:
        tensors = self._opened(part, "diffusion_pytorch_model")
        if sorted_as_built:
            tensors.shapes = {n: tensors.shapes[n] for n in sorted(tensors.shapes, key=_place)}
        return Skeleton(tensors, self._config(part), self.dtype, self._execution_device)

    def _opened(self, part: str, stem: str) -> Tensors:
        """The file of a network: that of the variant if it has one, as in diffusers."""
        names = [f"{stem}.{self.variant}"] * bool(self.variant) + [stem]
        paths = [self.folder / part / f"{name}.safetensors" for name in names]
        return Tensors(next((path for path in paths if path.is_file()), paths[-1]))

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
    except (KeyError, ValueError, OSError, RuntimeError, SafetensorError):
        return None
