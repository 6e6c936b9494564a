"""MMA-Diffusion, its part in text (Yang et al., CVPR 2024): other tokens that mean the same.

It knows the text encoder alone, and looks for tokens without the concept's own words whose
feature, the text encoder's row at the end of the prompt, is that of the prompt (eq. 2)::

    max_ids  cos(f(ids), f(p))

By greedy coordinate gradients (Zou et al., 2023): the gradient of a one-hot row says which tokens
promise most in each place. Of these some are tried at random, and the best prompt is the next.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cosine_similarity

from expunge.attacks.base import Attack, Knows, Search, turns
from expunge.attacks.found import Found
from expunge.attacks.target import Target
from expunge.attacks.tokens import Tokens
from expunge.models.text import TextInput
from expunge.seeding import generator

BLOCK = 128
"""Prompts that are encoded side by side."""


class MMA(Attack):
    """Greedy coordinate gradients in the text encoder alone."""

    name: ClassVar[str] = "mma"
    title: ClassVar[str] = "MMA-Diffusion (text)"
    year: ClassVar[int] = 2024
    url: ClassVar[str] = "https://arxiv.org/abs/2311.17516"
    knows: ClassVar[frozenset[Knows]] = frozenset({"text encoder"})
    spends: ClassVar[bool] = False

    fidelity: Literal["original", "corrected"] = "corrected"
    tokens: int = Field(20, ge=1)
    """Tokens of a prompt."""
    promising: int = Field(256, ge=1)
    """Tokens that a place is tried with, at most."""
    tries: int = Field(512, ge=1)
    """Prompts of a step."""
    steps: int = Field(500, ge=1)
    """At most."""
    starts: int = Field(3, ge=1)
    """Searches; pictures are shared among them."""

    def check(self, target: Target) -> None:
        Tokens.of(target)

    def groups(self, pictures: int) -> Sequence[Sequence[int]]:
        return turns(pictures, self.starts)

    def begin(self, target: Target, pictures: Sequence[int], seed: int) -> Search:
        return GreedySearch(self, target, pictures, seed)


class GreedySearch(Search):
    """One prompt, which changes in one place a step.

    The released program goes on with the best try of each step; here it must be better.
    """

    def __init__(self, attack: MMA, target: Target, pictures: Sequence[int], seed: int) -> None:
        self.attack, self.target, self.pictures, self.seed = attack, target, pictures, seed
        self.tokens = Tokens.of(target)
        original = attack.fidelity == "original"
        whole = self.tokens.vocabulary if original else self.tokens.readable
        self.vocabulary = self.tokens.without(whole, target.concept.phrases)
        self.table = self.tokens.table[self.vocabulary.to(self.tokens.table.device)]
        [text] = target.model.read([target.prompts[pictures[0]]])
        end = target.model.last_token(target.prompts[pictures[0]]) + 1
        with torch.no_grad():
            self.wanted = target.model.embed(text).rows[0, end].float()
        draws = generator(seed, "start", pictures[0])
        entries = torch.randint(len(self.vocabulary), (attack.tokens,), generator=draws)
        self.ids = self.vocabulary[entries]
        self.tokens.row(self.ids.tolist())  # raises if they are too many
        self.best, self.loss = self.ids, float(self.losses(self.ids[None])[0])
        self.steps = 0

    def _read(self, prompts: Tensor, rows: Tensor | None = None) -> Tensor:
        """One minus the cosine of each prompt, ``[prompts]``; gradients reach ``rows``."""
        count = self.attack.tokens
        text = TextInput(torch.stack([self.tokens.row(ids) for ids in prompts.tolist()]))
        text = text.first(count + 2)
        if rows is not None:
            text = text.replaced(rows, torch.arange(1, count + 1)[None])
        found = self.target.model.embed(text).rows[:, count + 1].float()
        return 1 - cosine_similarity(found, self.wanted[None])

    @torch.no_grad()
    def losses(self, prompts: Tensor) -> Tensor:
        """One minus the cosine of each prompt ``[prompts, tokens]``."""
        return torch.cat([self._read(block) for block in torch.split(prompts, BLOCK)])

    def promise(self) -> Tensor:
        """The entries of the vocabulary that promise most in each place, ``[tokens, entries]``."""
        rows = self.tokens.table[self.ids.to(self.table.device)].clone().requires_grad_()
        [gradient] = torch.autograd.grad(self._read(self.ids[None], rows).sum(), [rows])
        count = min(self.attack.promising, len(self.vocabulary))
        return (-gradient @ self.table.T).topk(count, dim=-1).indices

    def step(self) -> None:
        draws = generator(self.seed, "tries", self.pictures[0], self.steps)
        promising, attack = self.promise().cpu(), self.attack
        places = torch.randint(attack.tokens, (attack.tries,), generator=draws)
        ranks = torch.randint(promising.shape[1], (attack.tries,), generator=draws)
        tried = self.ids.repeat(attack.tries, 1)
        tried[torch.arange(attack.tries), places] = self.vocabulary[promising[places, ranks]]
        losses = self.losses(tried)
        for number in losses.argsort(stable=True).tolist():
            if self._sendable(tried[number].tolist()):
                self._take(tried[number], float(losses[number]))
                break
        self.steps += 1

    def _sendable(self, ids: list[int]) -> bool:
        return self.tokens.reread(ids) == ids and self.tokens.allowed(ids)

    def _take(self, ids: Tensor, loss: float) -> None:
        if loss < self.loss or self.attack.fidelity == "original":
            self.ids = ids
        if loss < self.loss:
            self.best, self.loss = ids, loss

    @property
    def state(self) -> Mapping[str, Tensor]:
        return {
            "ids": self.ids,
            "best": self.best,
            "loss": torch.tensor(self.loss, dtype=torch.float64),
            "steps": torch.tensor(self.steps),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.ids, self.best = state["ids"], state["best"]
        self.loss, self.steps = float(state["loss"]), int(state["steps"])

    def found(self) -> Found:
        return Found(ids=self.tokens.sendable(self.best.tolist()), loss=self.loss)

    @property
    def over(self) -> bool:
        return self.steps >= self.attack.steps
