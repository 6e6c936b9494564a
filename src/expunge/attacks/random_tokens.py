"""Random tokens: the control of every attack that chooses tokens.

What an attack finds counts for as much as it is more than this.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field

from expunge.attacks.base import Attack, Knows, Ready, Search
from expunge.attacks.found import Found
from expunge.attacks.target import Target
from expunge.attacks.tokens import Tokens
from expunge.errors import ExpungeError
from expunge.seeding import generator

DRAWS = 100
"""Prompts that are drawn until one is allowed."""


class RandomTokens(Attack):
    """A prompt of random tokens for each picture, none of them the concept's."""

    name: ClassVar[str] = "random-tokens"
    title: ClassVar[str] = "Random tokens"
    year: ClassVar[int] = 2024
    url: ClassVar[str] = "https://arxiv.org/abs/2309.06135"
    knows: ClassVar[frozenset[Knows]] = frozenset({"text encoder"})
    spends: ClassVar[bool] = False

    tokens: int = Field(16, ge=1)
    """Tokens of a prompt."""

    def check(self, target: Target) -> None:
        Tokens.of(target)

    def begin(self, target: Target, pictures: Sequence[int], seed: int) -> Search:
        tokens = Tokens.of(target)
        vocabulary = tokens.without(tokens.readable, target.concept.phrases)
        draws = generator(seed, "random tokens", pictures[0])
        for _ in range(DRAWS):
            entries = torch.randint(len(vocabulary), (self.tokens,), generator=draws)
            ids = vocabulary[entries].tolist()
            tokens.row(ids)  # raises if they are too many
            if found := tokens.sendable(ids):
                return Ready(Found(ids=found))
        raise ExpungeError(f"{DRAWS} random prompts for {target.concept.target!r} were refused")
