"""Trainings that are stopped in the middle."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from expunge.training import loop


@contextmanager
def stopped_in(step: int) -> Iterator[None]:
    """Inside, a training is stopped, as by Ctrl-C, in the step with this number, from 1."""
    real, calls = loop.Trainer.step, 0

    def failing(*arguments: object) -> dict[str, float]:
        nonlocal calls
        calls += 1
        if calls == step:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Trainer, "step", failing)
        with pytest.raises(KeyboardInterrupt):
            yield
