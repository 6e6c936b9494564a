"""Forward passes that stand in for a module's own for a while."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import nn


class Pass(ABC):
    """A module's forward pass, around the one that it had, until ``remove``."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.own: Callable[..., Any] | None = vars(module).get("forward")
        """A pass of the module's own, where somebody put one, such as offloading."""
        module.forward = self

    @abstractmethod
    def __call__(self, *args: Any, **options: Any) -> Any:
        """What the module gives now."""

    def found(self, *args: Any, **options: Any) -> Any:
        """What the module gives without this pass."""
        if self.own:
            return self.own(*args, **options)
        return type(self.module).forward(self.module, *args, **options)

    def remove(self) -> None:
        """Restore the previous pass, unless another one now wraps this one."""
        if vars(self.module).get("forward") is not self:
            return
        if self.own:
            self.module.forward = self.own
        else:
            del self.module.forward
