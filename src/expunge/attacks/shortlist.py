"""The prompts that a search came by, compared at the same points."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from expunge.attacks.points import Score
from expunge.attacks.tokens import Tokens


class Shortlist:
    """Prompts by a score; the best one is kept.

    A prompt is compared as its text is read again, which is what a user can send.

    Args:
        tokens: of the model.
        score: the lower, the better.
        start: where the search begins; it is compared with the first other prompt.
    """

    def __init__(self, tokens: Tokens, score: Score, start: Sequence[int]) -> None:
        self.tokens, self.score, self.start = tokens, score, tokens.sendable(start)
        self.seen: dict[tuple[int, ...], float] = {}

    def see(self, *prompts: Sequence[int]) -> None:
        """Compare prompts that weren't compared before and may be drawn."""
        read = [tuple(self.tokens.reread(ids)) for ids in prompts]
        new = [one for one in dict.fromkeys([self.start, *read]) if one not in self.seen]
        if new := [one for one in new if self.tokens.allowed(one)]:
            scores = self.score(self.tokens.condition(new))
            self.seen.update(zip(new, scores, strict=True))

    @property
    def best(self) -> tuple[int, ...]:
        return min(self.seen, key=self.seen.__getitem__, default=self.start)

    @property
    def loss(self) -> float | None:
        """Of the best."""
        return min(self.seen.values(), default=None)

    @property
    def state(self) -> dict[str, Tensor]:
        """The prompts, filled up with -1, and their scores."""
        ids = torch.full((len(self.seen), self.tokens.room), -1)
        for row, one in enumerate(self.seen):
            ids[row, : len(one)] = torch.tensor(one)
        losses = torch.tensor(list(self.seen.values()), dtype=torch.float64)
        return {"seen": ids, "seen losses": losses}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state."""
        rows = [tuple(one for one in row if one >= 0) for row in state["seen"].tolist()]
        self.seen = dict(zip(rows, state["seen losses"].tolist(), strict=True))
