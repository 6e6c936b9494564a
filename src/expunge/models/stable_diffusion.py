"""Stable Diffusion 1.x and 2.x: a diffusers ``StableDiffusionPipeline``, or one for inpainting."""

from typing import ClassVar

from torch import Tensor

from expunge.models.condition import Condition
from expunge.models.emoji import denoiser_config
from expunge.models.sampling import BUNDLED, USUAL, Sampling
from expunge.models.text import TextEncoder, TextInput
from expunge.models.unet import UNetModel


class StableDiffusion(UNetModel):
    """One text encoder, whose last rows are the condition; 2.x models may predict ``v``."""

    family: ClassVar[str] = "sd"

    @property
    def text_encoders(self) -> tuple[TextEncoder, ...]:
        pipe = self.pipe
        return (TextEncoder(pipe.tokenizer, pipe.text_encoder, pipe.maybe_convert_prompt),)

    @property
    def bundled(self) -> bool:
        """Told by the shape of the denoiser, which exports and finetuned copies have as well."""
        config = self.pipe.unet.config
        return all(config.get(name) == value for name, value in denoiser_config().items())

    @property
    def usual_sampling(self) -> Sampling:
        return BUNDLED if self.bundled else USUAL

    def embed(self, *texts: TextInput) -> Condition:
        (text,) = texts
        rows: Tensor = self.text_encoders[0].run(text).last_hidden_state.to(self.device)
        self._tell_replaced(rows, text)
        return Condition(rows)

    @property
    def causal(self) -> bool:
        return self.text_encoders[0].causal

    def predict(self, latents: Tensor, time: Tensor | int, condition: Condition) -> Tensor:
        answer: Tensor = self.denoiser(latents, time, encoder_hidden_states=condition.rows).sample
        return answer
