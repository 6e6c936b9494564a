"""Stable Diffusion XL: a diffusers ``StableDiffusionXLPipeline``.

Its UNet is told more than the rows of a prompt: one pooled vector of the whole prompt, and the
sizes of the picture, which follow from the latents unless a condition has its own ``time_ids``.
"""

from typing import ClassVar

import torch
from torch import Tensor

from expunge.models.condition import Condition
from expunge.models.sampling import USUAL_XL, Sampling
from expunge.models.text import TextEncoder, TextInput
from expunge.models.unet import UNetModel


class SDXL(UNetModel):
    """Two text encoders, whose last rows but one stand side by side."""

    family: ClassVar[str] = "sdxl"

    @property
    def text_encoders(self) -> tuple[TextEncoder, ...]:
        pipe = self.pipe
        return (
            TextEncoder(pipe.tokenizer, pipe.text_encoder, pipe.maybe_convert_prompt),
            TextEncoder(pipe.tokenizer_2, pipe.text_encoder_2, pipe.maybe_convert_prompt),
        )

    @property
    def usual_sampling(self) -> Sampling:
        return USUAL_XL

    @property
    def causal(self) -> bool:
        return all(encoder.causal for encoder in self.text_encoders)

    def embed(self, *texts: TextInput) -> Condition:
        outputs = [
            encoder.run(text._replace(mask=None), output_hidden_states=True)
            for encoder, text in zip(self.text_encoders, texts, strict=True)
        ]
        rows = torch.cat([output.hidden_states[-2] for output in outputs], -1)
        pooled: Tensor = outputs[1][0]
        dtype = self.pipe.text_encoder_2.dtype
        return Condition(rows.to(self.device, dtype), pooled.to(self.device, dtype))

    def unconditional(self) -> Condition:
        """Zeros if the pipeline says so, as SDXL's own does, else the empty prompt."""
        empty = self.condition([""])
        zeros = self.pipe.config.force_zeros_for_empty_prompt
        return empty.map(torch.zeros_like) if zeros else empty

    def predict(self, latents: Tensor, time: Tensor | int, condition: Condition) -> Tensor:
        sizes = condition.extra.get("time_ids")
        if sizes is None:
            size = [side * self.pipe.vae_scale_factor for side in latents.shape[-2:]]
            sizes = condition.rows.new_tensor([*size, 0, 0, *size]).expand(len(latents), -1)
        answer: Tensor = self.denoiser(
            latents,
            time,
            encoder_hidden_states=condition.rows,
            added_cond_kwargs={"text_embeds": condition.pooled, "time_ids": sizes},
        ).sample
        return answer
