"""What the families with a ``UNet2DConditionModel`` share: its roles, its calls, its latents."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from expunge.errors import Unsupported
from expunge.models import attention
from expunge.models.attention import Look, Projections
from expunge.models.condition import Condition
from expunge.models.model import Model
from expunge.models.passes import Pass
from expunge.models.process import Diffusion, Process
from expunge.models.roles import Roles
from expunge.models.skips import Reroute, SkipPass

ROLES: Roles = {
    "cross_attention.kv": "*.attn2.to_k.* | *.attn2.to_v.*",
    "cross_attention.q": "*.attn2.to_q.*",
    "cross_attention": "*.attn2.*",
    "self_attention": "*.attn1.*",
    "attention.qkv": "*.attn[12].to_[qkv].*",
    "not_cross_attention": "layers - cross_attention",
    "transformers": "*.attentions.*.transformer_blocks.*.weight | *.attentions.*.proj_in.weight | "
    "*.attentions.*.proj_out.weight & layers",
    "time": "time_embedding.*",
    "output": "conv_out.* | conv_norm_out.*",
    "embeddings": "*emb*",
    "blocks": "*block*",
    "down.1.first": "down_blocks.1.attentions.0.*",
    "down.2.first": "down_blocks.2.attentions.0.*",
    "up.2.first": "up_blocks.2.attentions.0.*",
    "up.2.last": "up_blocks.2.attentions.2.*",
}
"""``not_cross_attention`` is every linear layer and convolution outside cross-attention, no norm;
``transformers`` the weights of those that are part of a ``Transformer2DModel``;
``down.1.first`` and the like single transformers, by their stage."""


class UNetCall:
    """A call of a ``UNet2DConditionModel``."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.arguments = arguments
        self.latents: Tensor = arguments["sample"]
        self.time: Tensor = arguments["timestep"]
        added = dict(arguments.get("added_cond_kwargs") or {})
        self.condition = Condition(
            arguments["encoder_hidden_states"], added.pop("text_embeds", None), added
        )

    def run(
        self, forward: Callable[..., Any], latents: Tensor, time: Tensor, condition: Condition
    ) -> Tensor:
        changed = {"sample": latents, "timestep": time, "encoder_hidden_states": condition.rows}
        if condition.pooled is not None:
            changed["added_cond_kwargs"] = {"text_embeds": condition.pooled, **condition.extra}  # type: ignore[assignment]
        answer: Tensor = forward(**{**self.arguments, **changed, "return_dict": False})[0]
        return answer

    def result(self, answer: Tensor) -> Any:
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

        if self.arguments.get("return_dict", True):
            return UNet2DConditionOutput(sample=answer)
        return (answer,)


@cache
def _signature() -> inspect.Signature:
    from diffusers import UNet2DConditionModel

    whole = inspect.signature(inspect.unwrap(UNet2DConditionModel.forward))
    return whole.replace(parameters=list(whole.parameters.values())[1:])


class UNetModel(Model):
    """A pipeline whose denoiser is a ``UNet2DConditionModel``, and whose noise is a diffusion."""

    roles: ClassVar[Roles] = ROLES

    @property
    def denoiser(self) -> nn.Module:
        network: nn.Module = self.pipe.unet
        return network

    @property
    def decoder(self) -> nn.Module:
        network: nn.Module = self.pipe.vae
        return network

    @property
    def process(self) -> Process:
        return Diffusion(self.pipe.scheduler)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        config = self.pipe.unet.config
        size = config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return config.in_channels, height, width

    def check_draws(self) -> None:
        decoder: Any = self.decoder
        config, given = self.pipe.unet.config, decoder.config.latent_channels
        takes = config.in_channels
        if takes != given:
            kind = {9: " (a model for inpainting)", 8: " (a model that edits by instruction)"}
            raise Unsupported(
                f"the UNet of {self.name!r} takes {takes} channels and the VAE gives {given}"
                f"{kind.get(takes, '')}; methods in closed form work on it, drawing and training "
                "don't"
            )
        if config.get("time_cond_proj_dim"):
            raise Unsupported(
                f"the UNet of {self.name!r} takes the guidance scale as an input (a latent "
                "consistency model), which isn't there yet; methods in closed form work on it, "
                "drawing and training don't"
            )

    @property
    def image_size(self) -> tuple[int, int]:
        _, height, width = self.latent_shape
        return height * self.pipe.vae_scale_factor, width * self.pipe.vae_scale_factor

    @property
    def text_width(self) -> int:
        return int(self.pipe.unet.config.cross_attention_dim)

    @staticmethod
    def call(args: Sequence[Any], options: Mapping[str, Any]) -> UNetCall:
        return UNetCall(dict(_signature().bind_partial(*args, **options).arguments))

    @torch.no_grad()
    def posterior(self, colours: Tensor) -> tuple[Tensor, Tensor]:
        vae: Any = self.decoder
        parts = []
        for picture in colours:
            found = vae.encode(picture[None].to(vae.device, vae.dtype)).latent_dist
            parts.append((found.mean.float(), found.std.float()))
        mean, deviation = (
            torch.cat(column) * vae.config.scaling_factor for column in zip(*parts, strict=True)
        )
        return mean.to(self.device), deviation.to(self.device)

    def colours(self, latents: Tensor) -> Tensor:
        vae: Any = self.decoder
        scaled = latents.to(vae.dtype) / vae.config.scaling_factor
        found: Tensor = vae.decode(scaled, return_dict=False)[0].float()
        return found

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        levels = (self.colours(latents) / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
        rows: Tensor = levels.permute(0, 2, 3, 1).contiguous().cpu()
        return rows

    def attention_read(
        self, read: Callable[[Look], Tensor] | None = None
    ) -> AbstractContextManager[dict[str, Tensor]]:
        return attention.cross_attention(self.denoiser, read or attention.attention)

    def projections_changed(
        self, change: Callable[[Tensor], Tensor]
    ) -> AbstractContextManager[None]:
        return attention.projections_changed(self.denoiser, change)

    def projections_beside(self, name: str) -> Projections:
        return attention.projections_beside(name)

    def skips_changed(self, reroute: Callable[[], Reroute | None]) -> list[Pass]:
        denoiser: Any = self.denoiser
        deepest = denoiser.config.block_out_channels[-1]
        return [
            SkipPass(block, number, deepest, reroute)
            for number, block in enumerate(denoiser.up_blocks)
        ]

    def values_then_keys(self) -> tuple[str, ...]:
        """Each in the order of down, up and middle blocks."""
        blocks = ("down", "up", "mid")
        names = self.select("cross_attention.kv")
        return tuple(
            sorted(names, key=lambda n: (".to_k." in n, blocks.index(n.partition("_")[0])))
        )
