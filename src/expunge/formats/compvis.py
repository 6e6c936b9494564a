"""Parameter names of the original LDM UNet (Stable Diffusion 1.x) as diffusers names."""

import re

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
    """Where ``input_blocks.{index}.{part}`` or ``output_blocks.{index}.{part}`` stands."""
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
