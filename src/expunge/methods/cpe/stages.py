"""The stages of CPE's training: erasing, attack, erasing, ..."""

import math
from collections.abc import Iterator
from typing import NamedTuple


class Stage(NamedTuple):
    """Steps with one goal and one learning-rate curve."""

    number: int
    attack: bool
    start: int
    length: int
    lr: float
    warmup: int
    cycles: int


def lengths(
    *,
    rounds: int,
    first_iterations: int,
    later_iterations: int,
    attack_iterations: int,
    last: bool,
) -> Iterator[tuple[bool, int]]:
    """Whether each stage is an attack, and its steps."""
    for number in range(rounds):
        yield False, later_iterations if number else first_iterations
        if attack_iterations and (last or number + 1 < rounds):
            yield True, attack_iterations


def restarting(stage: Stage, step: int) -> float:
    """A cosine with hard restarts after a linear warm-up, as a factor in a step of the stage."""
    if step < stage.warmup:
        return step / stage.warmup
    progress = (step - stage.warmup) / max(1, stage.length - stage.warmup)
    return 0.0 if progress >= 1 else (1 + math.cos(math.pi * (stage.cycles * progress % 1))) / 2
