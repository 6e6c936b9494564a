"""One UNet, two readings: with its own weights the teacher, with trained ones the student."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.func import functional_call

from expunge.errors import ExpungeError
from expunge.models import Model


class Student:
    """Trainable float32 copies of some parameters of a model that itself stays untouched.

    The teacher costs no second UNet: it is the same module without the copies put in. The
    copies are the master weights; they are rounded to the model's precision in each pass.
    """

    def __init__(self, model: Model, names: Iterable[str]) -> None:
        self.model = model
        self.weights = {
            name: model.base_weight(name).float().clone().requires_grad_() for name in names
        }
        if not self.weights:
            raise ExpungeError("no parameter to train; choose a role that this model has")

    def predict(self, latents: Tensor, timestep: Tensor, embeddings: Tensor) -> Tensor:
        """The student's noise prediction, float32, shaped like ``latents``; has gradients."""
        swapped = {name: weight.to(self.model.dtype) for name, weight in self.weights.items()}
        arguments = (latents.to(self.model.dtype), timestep)
        output = functional_call(
            self.model.unet, swapped, arguments, {"encoder_hidden_states": embeddings}
        )
        noise: Tensor = output.sample
        return noise.float()

    @torch.no_grad()
    def teach(self, latents: Tensor, timestep: Tensor, embeddings: Tensor) -> Tensor:
        """The untrained model's noise prediction, float32, shaped like ``latents``."""
        noise = self.model.predict_noise(latents.to(self.model.dtype), timestep, embeddings)
        return noise.float()

    def projection_change(self, gram: Tensor) -> Tensor:
        """How far trained keys and values of some embeddings have moved, a scalar with gradients.

        The mean of ``|dW E^T|^2 / |W E^T|^2`` over the trained key and value projections ``W``,
        from the embeddings' Gram matrix ``E^T E``, ``[width, width]``; 0 if none is trained.
        """
        shares = []
        for name in self.model.select("cross_attention.kv"):
            if name not in self.weights:
                continue
            base = self.model.base_weight(name).float()
            change = self.weights[name] - base
            shares.append(((change @ gram) * change).sum() / ((base @ gram) * base).sum())
        return torch.stack(shares).mean() if shares else gram.new_zeros(())

    @torch.no_grad()
    def changes(self) -> dict[str, Tensor]:
        """What training has added to each parameter, float32."""
        return {
            name: (weight - self.model.base_weight(name).float()).detach()
            for name, weight in self.weights.items()
        }
