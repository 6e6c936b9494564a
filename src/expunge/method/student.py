"""One UNet, several readings: with its own weights the teacher, with trained ones the student."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from typing_extensions import Self

from expunge.edits.applied import edited_weights
from expunge.edits.edit import Edit
from expunge.edits.payloads import Change, Dense, LowRank
from expunge.errors import ExpungeError
from expunge.method.batch import Batch
from expunge.models import Condition, Model
from expunge.seeding import generator

Result = TypeVar("Result")


class Student:
    """Trainable float32 copies of some parameters of a model that itself stays untouched.

    The teacher costs no second UNet: it is the same module without the copies put in. The
    copies are the master weights; they are rounded to the model's precision in each pass. With a
    ``rank``, not the matrices are copied but the two factors of their change are trained.
    """

    def __init__(
        self,
        model: Model,
        names: Iterable[str],
        *,
        rank: int = 0,
        seed: int = 0,
        start: Edit | None = None,
    ) -> None:
        """``start`` is an edit that the student begins with; it stays part of it."""
        self.model = model
        self.rank = rank
        self.start = start
        self.names = tuple(names)
        self.fixed = _edited(model, start)
        """Parameters that ``start`` changed, as they were before training."""
        self.weights: dict[str, Tensor] = {}
        """What the optimiser sees: copies of the parameters, or factors ``up:`` and ``down:``."""
        if rank:
            self.names = tuple(n for n in self.names if _is_matrix(model.base_weight(n)))
        for name in self.names:
            for key, value in self._fresh(name, seed).items():
                self.weights[key] = value.to(model.device).requires_grad_()
        if not self.weights:
            raise ExpungeError("no parameter to train; choose a role that this model has")

    def _fresh(self, name: str, seed: int) -> dict[str, Tensor]:
        """A copy, or factors that change nothing yet."""
        begin = self.before(name)
        if not self.rank:
            return {name: begin.clone()}
        rows, columns = begin.flatten(1).shape
        down = torch.randn(self.rank, columns, generator=generator(seed, "adapter", name))
        return {f"up:{name}": torch.zeros(rows, self.rank), f"down:{name}": down / self.rank}

    def before(self, name: str) -> Tensor:
        """A parameter as it was before training, float32."""
        return self.fixed.get(name, self.model.base_weight(name)).float()

    def value(self, name: str) -> Tensor:
        """A trained parameter as it is now, float32; has gradients."""
        if not self.rank:
            return self.weights[name]
        before = self.before(name)
        change = self.weights[f"up:{name}"] @ self.weights[f"down:{name}"]
        return before + change.reshape(before.shape)

    def change(self, name: str) -> Tensor:
        """What training has added to a parameter so far, float32; has gradients."""
        return self.value(name) - self.before(name)

    def for_batch(self, batch: Batch) -> Self:
        """What the loss of a batch reads; where concepts take turns, just the batch's own."""
        return self

    def within(self, action: Callable[[], Result]) -> Result:
        """What ``action`` gives while the UNet has the student's weights, with gradients."""
        trained = {name: self.value(name).to(self.model.dtype) for name in self.names}
        return within(self.model.denoiser, {**self.fixed, **trained}, action)

    def predict(self, latents: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """The student's prediction, float32, shaped like ``latents``; has gradients."""
        return self.within(lambda: self._answer(latents, timestep, condition))

    @torch.no_grad()
    def teach(self, latents: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """The base model's prediction, float32, shaped like ``latents``."""
        return self._answer(latents, timestep, condition)

    @torch.no_grad()
    def began(self, latents: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """The prediction of the model that training began with, shaped like ``latents``."""
        action = partial(self._answer, latents, timestep, condition)
        return within(self.model.denoiser, self.fixed, action)

    def _answer(self, latents: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        dtype = self.model.dtype
        condition = condition.to(dtype=dtype)
        return self.model.predict(latents.to(dtype), timestep, condition).float()

    @contextmanager
    def shown(self) -> Iterator[Model]:
        """The model itself with what has been trained, inside the block."""
        with torch.no_grad():
            values = {**self.fixed, **{name: self.value(name) for name in self.names}}
        with self.model.lock:
            self.model.weights.write(values)
            try:
                yield self.model
            finally:
                self.model.weights.write(dict.fromkeys(values))

    def projection_change(self, gram: Tensor) -> Tensor:
        """How far trained keys and values of some embeddings have moved, a scalar with gradients.

        The mean of ``|dW E^T|^2 / |W E^T|^2`` over the trained key and value projections ``W``,
        from the embeddings' Gram matrix ``E^T E``, ``[width, width]``; 0 if none is trained.
        """
        shares = []
        for name in set(self.model.select("cross_attention.kv")) & set(self.names):
            base = self.before(name)
            change = self.change(name)
            shares.append(((change @ gram) * change).sum() / ((base @ gram) * base).sum())
        return torch.stack(shares).mean() if shares else gram.new_zeros(())

    @torch.no_grad()
    def changes(self) -> dict[str, Tensor]:
        """What training has added to each parameter, float32."""
        return {name: self.change(name).detach() for name in self.names}

    @torch.no_grad()
    def payload(self) -> Change:
        """What training has added, in the form that it was trained in."""
        if not self.rank:
            return Dense(self.changes())
        factors = {key: weight.detach().clone() for key, weight in self.weights.items()}
        up = {name: factors[f"up:{name}"] for name in self.names}
        return LowRank(up, {name: factors[f"down:{name}"] for name in self.names})


def within(
    network: nn.Module, parameters: Mapping[str, Tensor], action: Callable[[], Result]
) -> Result:
    """What ``action`` gives while a network has these parameters, with gradients."""
    swapped = {f"network.{name}": value for name, value in parameters.items()}
    result: Result = functional_call(_Scope(network), swapped, (action,))
    return result


class _Scope(nn.Module):
    """Runs anything while ``functional_call`` has parameters of a network replaced."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, action: Callable[[], Any]) -> Any:
        return action()


def _is_matrix(weight: Tensor) -> bool:
    """Whether it is a matrix, or one with two idle dimensions, as a 1 x 1 convolution is."""
    return weight.ndim == 2 or (weight.ndim == 4 and weight.shape[2:] == (1, 1))


def _edited(model: Model, start: Edit | None) -> Mapping[str, Tensor]:
    if start is None:
        return {}
    if start.gated or start.guarded:
        raise ExpungeError(
            f"training can't go on from {start.id}: it holds gates or guards, not weights alone"
        )
    weights = edited_weights(model, start.components, start.names)
    return {
        name: weight.to(model.base_weight(name).dtype)
        for name, weight in weights.items()
        if weight is not None
    }
