"""The layout of the original LDM program, in which single-file checkpoints are written.

``model.diffusion_model`` is the UNet, ``first_stage_model`` the VAE, ``cond_stage_model`` the text
encoder: CLIP in Stable Diffusion 1.x, OpenCLIP, which has other names and keeps queries, keys and
values in one tensor, in 2.x.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from expunge.errors import Unsupported

UNET = "model.diffusion_model."
"""How the names of the UNet's weights begin."""

_FIXED = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
}
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def _block(side: str, index: int, part: int, rest: str) -> str:
    """Diffusers name of ``input_blocks.{index}.{part}`` or ``output_blocks.{index}.{part}``."""
    if side == "input":
        block, layer = divmod(index - 1, 3)
        if rest.startswith("op."):
            return f"down_blocks.{block}.downsamplers.0.conv.{rest.removeprefix('op.')}"
        return f"down_blocks.{block}.{('resnets', 'attentions')[part]}.{layer}.{rest}"
    block, layer = divmod(index, 3)
    if rest.startswith("conv."):
        return f"up_blocks.{block}.upsamplers.0.{rest}"
    return f"up_blocks.{block}.{('resnets', 'attentions')[part]}.{layer}.{rest}"


def diffusers_name(name: str) -> str:
    """``input_blocks.1.1.proj_in.weight`` -> ``down_blocks.0.attentions.0.proj_in.weight``."""
    name = name.removeprefix("model.diffusion_model.")
    for start, place in _FIXED.items():
        if name.startswith(f"{start}."):
            name = place + name.removeprefix(start)
            break
    else:
        found = re.fullmatch(r"(input|output)_blocks\.(\d+)\.(\d)\.(.+)", name)
        if not found:
            raise KeyError(name)
        side, index, part, rest = found.groups()
        name = _block(side, int(index), int(part), rest)
    for theirs, ours in _RESNET.items():
        name = name.replace(f".{theirs}.", f".{ours}.")
    return name


def ldm_names(names: Iterable[str], layers: int = 2) -> dict[str, str]:
    """The LDM name of every diffusers UNet name; ``layers`` are ``layers_per_block``.

    All names at once, because an upsampler is numbered behind the attention of its block.

    Raises:
        Unsupported: the original UNet has no such part.
    """
    names = list(names)
    attentive = {found[1] for name in names if (found := re.match(r"up_blocks\.(\d+)\.att", name))}
    return {name: f"model.diffusion_model.{_ldm_name(name, layers, attentive)}" for name in names}


def unet(
    weights: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], config: Any
) -> dict[str, Tensor]:
    """The UNet of a single-file checkpoint by diffusers' names, of a model's ``shapes``.

    What the model has no place for keeps its name.
    """
    ours = {theirs: name for name, theirs in ldm_names(shapes, config.layers_per_block).items()}
    found = {}
    for name in (name for name in weights if name.startswith(UNET)):
        own, weight = ours.get(name, name), weights[name]
        same = own in shapes and weight.numel() == shapes[own].numel()
        found[own] = weight.reshape(shapes[own]) if same else weight
    return found


def _ldm_name(name: str, layers: int, attentive: set[str]) -> str:
    for theirs, ours in _FIXED.items():
        if name.startswith(f"{ours}."):
            rest = name.removeprefix(f"{ours}.")
            return f"{theirs}.{_ldm_resnet(rest) if '.resnets.' in ours else rest}"
    found = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", name)
    if not found:
        raise Unsupported(f"the original layout has no place for the UNet's {name}")
    side, block, part, layer, rest = found.groups()
    start = int(block) * (layers + 1)
    if part == "downsamplers":
        return f"input_blocks.{start + layers + 1}.0.{rest.replace('conv.', 'op.')}"
    if part == "upsamplers":
        return f"output_blocks.{start + layers}.{2 if block in attentive else 1}.{rest}"
    index = start + int(layer) + (side == "down")
    number, rest = (0, _ldm_resnet(rest)) if part == "resnets" else (1, rest)
    return f"{'input' if side == 'down' else 'output'}_blocks.{index}.{number}.{rest}"


def _ldm_resnet(rest: str) -> str:
    """``conv1.weight`` -> ``in_layers.2.weight``."""
    ours, _, parameter = rest.partition(".")
    return f"{ {place: theirs for theirs, place in _RESNET.items()}[ours] }.{parameter}"


_VAE = (
    (r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block."),
    (r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample."),
    (r"up_blocks\.(\d+)\.resnets\.", r"up.\1.block."),
    (r"up_blocks\.(\d+)\.upsamplers\.0\.", r"up.\1.upsample."),
    (r"mid_block\.resnets\.0\.", "mid.block_1."),
    (r"mid_block\.resnets\.1\.", "mid.block_2."),
    (r"mid_block\.attentions\.0\.", "mid.attn_1."),
    (r"attn_1\.group_norm\.", "attn_1.norm."),
    (r"attn_1\.to_([qkv])\.", r"attn_1.\1."),
    (r"attn_1\.to_out\.0\.", "attn_1.proj_out."),
    (r"conv_shortcut\.", "nin_shortcut."),
    (r"conv_norm_out\.", "norm_out."),
)


def vae(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A diffusers VAE in LDM names; its upward blocks count from the picture, not towards it."""
    blocks = 1 + max(int(n.split(".")[2]) for n in state if n.startswith("decoder.up_blocks."))
    tensors = {}
    for name, tensor in state.items():
        for pattern, replacement in _VAE:
            name = re.sub(pattern, replacement, name)
        name = re.sub(r"\.up\.(\d+)\.", lambda found: f".up.{blocks - 1 - int(found[1])}.", name)
        # The original's attention is made of convolutions of one pixel.
        convolution = ".attn_1." in name and tensor.ndim == 2
        tensors[f"first_stage_model.{name}"] = tensor[:, :, None, None] if convolution else tensor
    return tensors


def clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A transformers CLIP text encoder in the names of Stable Diffusion 1.x."""
    prefix = "cond_stage_model.transformer.text_model."
    return {f"{prefix}{name.removeprefix('text_model.')}": value for name, value in state.items()}


OPEN_CLIP_LAYERS = 23
"""Stable Diffusion 2.x uses all but the last of OpenCLIP's 24 layers; readers drop further ones."""

_OPEN_CLIP = (
    ("embeddings.token_embedding.weight", "token_embedding.weight"),
    ("embeddings.position_embedding.weight", "positional_embedding"),
    ("final_layer_norm.", "ln_final."),
    ("encoder.layers.", "transformer.resblocks."),
    (".layer_norm1.", ".ln_1."),
    (".layer_norm2.", ".ln_2."),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
    (".self_attn.out_proj.", ".attn.out_proj."),
)


def open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A transformers CLIP text encoder in the OpenCLIP names of Stable Diffusion 2.x.

    Raises:
        Unsupported: it has more layers than such a checkpoint is read for.
    """
    plain = {name.removeprefix("text_model."): value for name, value in state.items()}
    tensors: dict[str, Tensor] = {}
    for name, value in plain.items():
        layer = re.match(r"encoder\.layers\.(\d+)\.", name)
        if layer and int(layer[1]) >= OPEN_CLIP_LAYERS:
            raise Unsupported(
                f"the text encoder has more than {OPEN_CLIP_LAYERS} layers, of which a single-file "
                "checkpoint of Stable Diffusion 2.x loses the last; export --to diffusers instead"
            )
        if ".self_attn.k_proj." in name or ".self_attn.v_proj." in name:
            continue  # go with the queries
        if ".self_attn.q_proj." in name:
            value = torch.cat([plain[name.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"])
            name = name.replace(".self_attn.q_proj.", ".attn.in_proj_")
        for ours, theirs in _OPEN_CLIP:
            name = name.replace(ours, theirs)
        tensors[f"cond_stage_model.model.{name}"] = value
    return tensors
