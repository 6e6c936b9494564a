"""A thin view of a diffusers ``StableDiffusionXLPipeline``.

Its UNet is told more than the rows of a prompt: one pooled vector of the whole prompt, and the
size of the picture. The size follows from the latents. The pooled vector travels as one more row,
filled up with zeros, so that a condition is one tensor here too. ``encode`` gives the rows that
become keys and values, ``condition`` those and the pooled one.

So far training needs this and nothing else does: ``load`` doesn't make such a model, and what draws
from the rows alone is refused.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from expunge.errors import Unsupported
from expunge.models.stable_diffusion import Model

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline


class SDXL(Model):
    """Stable Diffusion XL, as far as a loss needs it."""

    def __init__(self, pipe: "StableDiffusionXLPipeline", name: str = "") -> None:
        super().__init__(pipe, name)
        for part in (self.unet, *self.parts):
            part.requires_grad_(False).eval()

    @property
    def parts(self) -> tuple[nn.Module, ...]:
        return self.pipe.text_encoder, self.pipe.text_encoder_2, self.pipe.vae

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Both text encoders' rows side by side, ``[prompts, tokens, width]``."""
        return self.condition(prompts)[:, :-1]

    def condition(self, prompts: Sequence[str]) -> Tensor:
        """The rows of each prompt and the pooled one, ``[prompts, tokens + 1, width]``."""
        return super().encode(prompts)

    def unconditional(self) -> Tensor:
        """Zeros if the pipeline says so, as SDXL's own does, else the empty prompt."""
        empty = self.condition([""])
        return torch.zeros_like(empty) if self.pipe.config.force_zeros_for_empty_prompt else empty

    def predict_noise(self, latents: Tensor, timestep: Tensor | int, embeddings: Tensor) -> Tensor:
        """The UNet's noise prediction for a whole picture of the latents' size.

        Raises:
            Unsupported: the embeddings lack the pooled row.
        """
        if embeddings.shape[1] != self.pipe.tokenizer.model_max_length + 1:
            raise Unsupported(
                "SDXL predicts from condition(prompts), not from encode(prompts); what was asked "
                "doesn't do so yet"
            )
        size = [side * self.pipe.vae_scale_factor for side in latents.shape[-2:]]
        sizes = embeddings.new_tensor([*size, 0, 0, *size]).expand(len(latents), -1)
        pooled = embeddings[:, -1, : self.pipe.text_encoder_2.config.projection_dim]
        noise: Tensor = self.unet(
            latents,
            timestep,
            encoder_hidden_states=embeddings[:, :-1],
            added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes},
        ).sample
        return noise

    @torch.no_grad()
    def _encode(self, prompts: list[str], length: int | None = None) -> Tensor:
        rows, _, pooled, _ = self.pipe.encode_prompt(
            prompts, device=self.device, do_classifier_free_guidance=False
        )
        return packed(rows, pooled)


def packed(rows: Tensor, pooled: Tensor) -> Tensor:
    """A condition from ``[..., tokens, width]`` and ``[..., at most width]``."""
    last = nn.functional.pad(pooled, (0, rows.shape[-1] - pooled.shape[-1]))
    return torch.cat([rows, last[..., None, :]], -2)
