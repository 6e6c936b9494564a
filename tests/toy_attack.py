"""A target to attack: the pico model, an edit of it, and a critic that likes dark pictures."""

from collections.abc import Sequence

import torch
from torch import Tensor

from expunge import Concept, Edit, Model
from expunge.attacks import points
from expunge.attacks.known import know
from expunge.attacks.target import Target
from expunge.detectors.base import Identity
from expunge.generation import Sampler
from expunge.models import Condition

CONCEPT = Concept(target="santa claus", keep=("ghost", "dog"))
PROMPTS = ("a picture of santa claus", "a photo of santa claus", "santa claus")
FAST = Sampler(steps=2)


class Dark:
    """Fits the first text the better, the darker a picture is."""

    identity = Identity(name="dark", version="", sha256="0" * 64)

    def fit(self, colours: Tensor, texts: Sequence[str]) -> Tensor:
        first = -colours.mean((1, 2, 3))
        return torch.stack([first, *[torch.zeros_like(first)] * (len(texts) - 1)], 1)

    def features(self, colours: Tensor) -> Tensor:
        return torch.nn.functional.normalize(colours.mean((2, 3)), dim=-1)


def target(model: Model, edit: Edit | None) -> Target:
    known = know(model, PROMPTS, FAST.sampling(model), seed=0, points=4)
    return Target(model, edit, CONCEPT, PROMPTS, known, FAST.sampling(model), Dark())


def distance(one: Target, numbers: Tensor, condition: Condition) -> Tensor:
    """How far answers for a condition are from the base's at some points."""
    return points.known(one, numbers, "base").loss(one, condition)
