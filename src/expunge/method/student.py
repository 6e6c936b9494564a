"""Teacher and student in one UNet: the same module, with its own weights or with trained ones."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from expunge.edits.applied import edited_weights, shown
from expunge.edits.edit import Edit
from expunge.edits.payloads import Change, Dense, LowRank
from expunge.errors import ExpungeError
from expunge.method.batch import Batch
from expunge.models import Condition, Model
from expunge.seeding import generator

Returned = TypeVar("Returned")


class Student:
    """Trainable float32 copies of some parameters of a model, which itself doesn't change.

    The teacher needs no second UNet: it is the same module without the copies. The copies are the
    master weights; each pass rounds them to the model's precision. With a ``rank``, the two factors
    of each matrix's change are trained instead of a copy.
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
        """``start`` is an edit that the student begins with; the student keeps it."""
        self.model = model
        self.rank = rank
        self.start = start
        self.names = tuple(names)
        self.fixed = _edited(model, start)
        """The parameters that ``start`` changes, as they are before training."""
        self.weights: dict[str, Tensor] = {}
        """What is trained: copies of the parameters, or their factors ``up:`` and ``down:``."""
        if rank:
            self.names = tuple(n for n in self.names if _is_matrix(model.base_weight(n)))
        for name in self.names:
            for key, value in self._fresh(name, seed).items():
                self.weights[key] = value.to(model.device).requires_grad_()
        if not self.weights:
            raise ExpungeError("no parameter to train; choose a role that this model has")

    def _fresh(self, name: str, seed: int) -> dict[str, Tensor]:
        """A copy of a parameter, or factors of a change of 0."""
        begin = self.before(name)
        if not self.rank:
            return {name: begin.clone()}
        rows, columns = begin.flatten(1).shape
        down = torch.randn(self.rank, columns, generator=generator(seed, "adapter", name))
        return {f"up:{name}": torch.zeros(rows, self.rank), f"down:{name}": down / self.rank}

    def before(self, name: str) -> Tensor:
        """A parameter before training, float32."""
        return self.fixed.get(name, self.model.base_weight(name)).float()

    def value(self, name: str) -> Tensor:
        """The current value of a trained parameter, float32; has gradients."""
        if not self.rank:
            return self.weights[name]
        before = self.before(name)
        change = self.weights[f"up:{name}"] @ self.weights[f"down:{name}"]
        return before + change.reshape(before.shape)

    def change(self, name: str) -> Tensor:
        """What training has added to a parameter so far, float32; has gradients."""
        return self.value(name) - self.before(name)

    def for_batch(self, batch: Batch) -> Self:
        """The student for a batch's loss; if concepts take turns, that of the batch's concept."""
        return self

    def within(self, action: Callable[[], Returned]) -> Returned:
        """What ``action`` returns while the UNet has the student's weights, with gradients."""
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
        """The prediction of the model at the start of training, shaped like ``latents``."""
        action = partial(self._answer, latents, timestep, condition)
        return within(self.model.denoiser, self.fixed, action)

    def _answer(self, latents: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        dtype = self.model.dtype
        condition = condition.to(dtype=dtype)
        return self.model.predict(latents.to(dtype), timestep, condition).float()

    @contextmanager
    def shown(self) -> Iterator[Model]:
        """The model with the trained weights, inside the block."""
        with torch.no_grad():
            values = {**self.fixed, **{name: self.value(name) for name in self.names}}
        with shown(self.model, values):
            yield self.model

    def projection_change(self, gram: Tensor) -> Tensor:
        """How far training has moved the keys and values of some embeddings; has gradients.

        The scalar is the mean of ``|dW E^T|^2 / |W E^T|^2`` over the trained key and value
        projections ``W``, or 0 if there are none. ``gram`` is ``E^T E``, ``[width, width]``.
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
        """What training has added, in the form in which it was trained."""
        if not self.rank:
            return Dense(self.changes())
        factors = {key: weight.detach().clone() for key, weight in self.weights.items()}
        up = {name: factors[f"up:{name}"] for name in self.names}
        return LowRank(up, {name: factors[f"down:{name}"] for name in self.names})


def within(
    network: nn.Module, parameters: Mapping[str, Tensor], action: Callable[[], Returned]
) -> Returned:
    """What ``action`` returns while a network has these parameters, with gradients."""
    swapped = {f"network.{name}": value for name, value in parameters.items()}
    result: Returned = functional_call(_Scope(network), swapped, (action,))
    return result


class _Scope(nn.Module):
    """Runs an action while ``functional_call`` replaces parameters of a network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, action: Callable[[], Any]) -> Any:
        return action()


def _is_matrix(weight: Tensor) -> bool:
    """Whether it is a matrix or a 1 x 1 convolution."""
    return weight.ndim == 2 or (weight.ndim == 4 and weight.shape[2:] == (1, 1))


def _edited(model: Model, start: Edit | None) -> Mapping[str, Tensor]:
    if start is None:
        return {}
    if start.gated or start.guarded:
        raise ExpungeError(
            f"training can't start from {start.id}: it holds gates or guards, not only weights"
        )
    weights = edited_weights(model, start.components, start.names)
    return {
        name: weight.to(model.base_weight(name).dtype)
        for name, weight in weights.items()
        if weight is not None
    }
