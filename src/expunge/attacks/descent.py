"""Gradient descent whose state can be saved."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


class Descent:
    """Adam on some tensors.

    Args:
        free: what is moved, by name.
        optimizer: makes the optimiser of these tensors.
        project: called after each step, without gradients, to put them back where they may be.
    """

    def __init__(
        self,
        free: Mapping[str, Tensor],
        optimizer: Callable[[list[Tensor]], torch.optim.Optimizer],
        project: Callable[[], None] | None = None,
    ) -> None:
        self.free = {name: one.detach().clone().requires_grad_() for name, one in free.items()}
        self.optimizer = optimizer(list(self.free.values()))
        self.project = project
        self.steps = 0
        self.last: float | None = None
        """The loss before the last step."""

    def __getitem__(self, name: str) -> Tensor:
        return self.free[name]

    def step(self, loss: Tensor) -> None:
        """Go down the loss by one step."""
        found = torch.autograd.grad(loss, list(self.free.values()))
        self.step_along(dict(zip(self.free, found, strict=True)), loss.item())

    def step_along(self, gradients: Mapping[str, Tensor], loss: float) -> None:
        """Go one step with gradients of the loss that are known."""
        for name, one in self.free.items():
            one.grad = gradients[name]
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps, self.last = self.steps + 1, loss
        if self.project:
            with torch.no_grad():
                self.project()

    @property
    def state(self) -> dict[str, Tensor]:
        """The tensors, the optimiser's moments, the number of steps and the last loss."""
        found = {f"free:{name}": one.detach() for name, one in self.free.items()}
        states = self.optimizer.state_dict()["state"]
        for index, name in enumerate(self.free):
            found |= {f"{key}:{name}": value for key, value in states.get(index, {}).items()}
        last = [] if self.last is None else [self.last]
        counts = {
            "steps": torch.tensor(self.steps),
            "last": torch.tensor(last, dtype=torch.float64),
        }
        return {**found, **counts}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state."""
        own: dict[str, dict[str, Tensor]] = {name: {} for name in self.free}
        for key, value in state.items():
            kind, _, name = key.partition(":")
            if name in own:
                own[name][kind] = value
        with torch.no_grad():
            for name, one in self.free.items():
                one.copy_(own[name].pop("free"))
        self.steps, self.last = int(state["steps"]), next(iter(state["last"].tolist()), None)
        states = dict(enumerate(own.values())) if self.steps else {}
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": states})
