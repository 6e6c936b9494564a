"""The best prompt, token by token: one gradient ranks all swaps of a token, and some are compared.

A swap of token ``a`` in a free place for ``b`` changes the loss by about ``g (E_b - E_a)``, with
the gradient ``g`` of the embedding there: UnlearnDiffAtk's gradient of a row of probabilities, and
P4D's at the nearest token. Their programs move along it a little, for tens of steps, until the
tokens change. Here the swaps that it promises most of are compared at once, without gradients, and
the best one is taken (Ebrahimi et al., ACL 2018; Shin et al., EMNLP 2020). The gradient holds until
a swap is taken, so it is computed once for each prompt.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from expunge.attacks import points
from expunge.attacks.base import Search
from expunge.attacks.found import Found
from expunge.attacks.layouts import Layout
from expunge.attacks.points import Towards
from expunge.attacks.shortlist import Shortlist
from expunge.attacks.target import Target
from expunge.attacks.tokens import Tokens
from expunge.seeding import generator


class Swaps(Search):
    """The search for the pictures' first prompt.

    Args:
        target: what is attacked.
        pictures: the search is for the first one's prompt.
        seed: decides the points, and tokens that nothing else decides.
        layout: the prompt, and which places of it are free.
        begun: ids that the first free places begin with; the others begin at random.
        towards: what answers should be.
        looks: points at which prompts are compared, and gradients taken.
        swaps: prompts that a step compares.
        control: the prompt that the search is compared with; by default where it begins.
    """

    def __init__(
        self,
        target: Target,
        pictures: Sequence[int],
        seed: int,
        layout: Layout,
        begun: Sequence[int],
        towards: Towards,
        looks: int,
        swaps: int,
        control: Sequence[int] = (),
    ) -> None:
        self.target, self.layout, self.swaps = target, layout, swaps
        self.tokens = Tokens.of(target)
        self.tokens.row(layout.ids)  # raises if they are too many
        self.vocabulary = self.tokens.readable
        self.table = self.tokens.table[self.vocabulary.to(self.tokens.table.device)]
        self.now = self._begun(begun, generator(seed, "start", pictures[0]))
        self.gradient: Tensor | None = None
        """Of the free places' embeddings as they are now, ``[places, width]``."""
        self.exhausted = False
        numbers = target.known.draw(looks, generator(seed, "looks", pictures[0]), pictures)
        self.where = points.known(target, numbers, towards)
        first = control or layout.filled(self.now)
        self.shortlist = Shortlist(self.tokens, points.proxy(target, numbers, towards), first)

    def _begun(self, ids: Sequence[int], draws: torch.Generator) -> list[int]:
        places = len(self.layout.free)
        entries = torch.randint(len(self.vocabulary), (places,), generator=draws)
        return [*ids, *self.vocabulary[entries].tolist()][:places]

    def step(self) -> None:
        """Compare the most promising swaps that weren't compared yet, and take one that helps."""
        if self.gradient is None:
            self.shortlist.see(self.layout.filled(self.now))
            self.gradient = self._gradient()
        tried = self._promising(self.gradient)
        self.shortlist.see(*map(self.layout.filled, tried))
        best = min([self.now, *tried], key=self._loss)
        if best != self.now:
            self.now, self.gradient = best, None
        self.exhausted = not tried

    def _loss(self, free: Sequence[int]) -> float:
        return self.shortlist.seen.get(tuple(self.layout.filled(free)), float("inf"))

    def _gradient(self) -> Tensor:
        rows = self.tokens.table[self.now].clone().requires_grad_()
        condition = self.tokens.embedded(self.layout.ids, self.layout.free, rows)
        loss = self.where.loss(self.target, condition.to(dtype=self.target.model.dtype))
        [gradient] = torch.autograd.grad(loss, [rows])
        return gradient

    def _promising(self, gradient: Tensor) -> list[list[int]]:
        """The free tokens after each of the best new swaps that can be sent as they are."""
        own = (gradient * self.tokens.table[self.now]).sum(-1, keepdim=True)
        ranked = (gradient @ self.table.T - own).flatten().argsort().tolist()
        found: list[list[int]] = []
        for number in ranked:
            place, entry = divmod(number, len(self.vocabulary))
            free = [*self.now]
            free[place] = int(self.vocabulary[entry])
            ids = tuple(self.layout.filled(free))
            if ids not in self.shortlist.seen and self.tokens.sendable(ids) == ids:
                found.append(free)
            if len(found) == self.swaps:
                break
        return found

    def found(self) -> Found:
        return Found(ids=self.shortlist.best, loss=self.shortlist.loss)

    @property
    def over(self) -> bool:
        """Whether no swap is left."""
        return self.exhausted

    @property
    def state(self) -> Mapping[str, Tensor]:
        own = {} if self.gradient is None else {"gradient": self.gradient}
        now = {"now": torch.tensor(self.now), "exhausted": torch.tensor(self.exhausted)}
        return {**self.shortlist.state, **now, **own}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.shortlist.restore(state)
        self.now, self.exhausted = state["now"].tolist(), bool(state["exhausted"])
        gradient = state.get("gradient")
        self.gradient = None if gradient is None else gradient.to(self.tokens.table)
