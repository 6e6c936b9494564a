"""Both sides on one model and policy, and whether they agree."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from comparison.made_up import phrases, prior, remember, weights_of
from comparison.originals import mace_fusion, mace_refinement, rece_epoch, uce, uce_2025
from expunge import Concept, Model, Policy, load, testing
from expunge.edits import LowRank, Payload, SharedMatrix
from expunge.methods.mace.closed import aligned, fusion, moment
from expunge.methods.mace.method import MACE
from expunge.methods.rece import RECE
from expunge.methods.uce.method import UCE

AGREE = 2e-3
"""Relative difference of the two sides' changes on the small model."""


class Sides:
    """One model and policy, and what each transcription needs of them."""

    def __init__(self, model: Model, policy: Policy) -> None:
        self.model, self.policy = model, policy
        self.weights = weights_of(model)
        self.kept = ["", *policy.kept]
        listed = [text for one in policy.erase for text in (one.target, one.replacement)]
        remember(model, [*listed, *self.kept])

    def rows(self, prompt: str) -> Tensor:
        return self.model.encode([prompt])[0]

    def row(self, prompt: str) -> Tensor:
        return self.rows(prompt)[self.model.last_token(prompt)]

    def uce_pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Rows from the last word on, paired by position."""
        pairs = []
        for one in self.policy.erase:
            first, second = map(self.model.last_token, (one.target, one.replacement))
            old, new = self.rows(one.target), self.rows(one.replacement)
            count = len(old) - max(first, second)
            pairs.append((old[first : first + count], new[second : second + count]))
        return pairs

    def uce(
        self,
        prompts: int | None = None,
        layers: Iterable[int] | None = None,
        lean: bool = False,
    ) -> list[Tensor]:
        """All of it, or so many kept prompts and nothing to erase."""
        scale = max(0.1, 1 / len(self.kept))
        moved = self.uce_pairs() if prompts is None else []
        kept = [self.rows(prompt) for prompt in self.kept[:prompts]]
        return uce(self.weights, moved, kept, scale, 0.5, layers, lean)

    def uce_2025(self, prompts: int | None = None) -> list[Tensor]:
        """All of it, or so many kept prompts and nothing to erase."""
        erased = self.policy.erase if prompts is None else ()
        moved = [(self.row(one.target), self.row(one.replacement)) for one in erased]
        kept = [self.row(prompt) for prompt in self.policy.kept[:prompts]]
        return uce_2025(self.weights, moved, kept, 0.5)

    def rece_epoch(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """One more epoch for the first concept."""
        one = self.policy.erase[0]
        pair = self.rows(one.target), self.rows(one.replacement)
        kept = [self.rows(prompt) for prompt in self.kept]
        return rece_epoch(self.weights, weights, *pair, kept, 0.1, 0.1)


class Mace:
    """The refinement and fusion of several concepts whose adapters are random."""

    scale, lamb = 1e-2, 0.5

    def __init__(self, model: Model, concepts: int, sentences: int) -> None:
        self.model = model
        words = phrases(concepts + sentences)
        self.policy = Policy.of(
            Concept(target=target, anchor="a person", kind="character")
            for target in words[:concepts]
        )
        self.captions = prior(model)
        self.method = MACE(
            fidelity="original",
            rank=0,
            contexts=tuple(f"{text} {{}} photo" for text in words[concepts:]),
            lamb=self.lamb,
            prior=self.captions,
            train_preserve_scale=self.scale,
        )
        pairs = [pair for one in self.policy.erase for pair in one.pairs(self.method.contexts)]
        remember(model, [prompt for pair in pairs for prompt in (pair.erase, pair.anchor)])
        draws = torch.Generator().manual_seed(2)
        self.adapters = [
            LowRank(
                {name: torch.randn(len(weight), 1, generator=draws) for name, weight in self.base},
                {
                    name: 1e-3 * torch.randn(1, weight.shape[1], generator=draws)
                    for name, weight in self.base
                },
            )
            for _ in self.policy.erase
        ]

    @property
    def base(self) -> list[tuple[str, Tensor]]:
        names = self.model.select("cross_attention.kv")
        return [(name, self.model.base_weight(name)) for name in names]

    def ours(self) -> Payload:
        refinement = self.method.solve(self.model, self.policy, 0)
        own = (
            moment(self.model, [prompt for prompt, _ in self.method.prompts(concept)])
            for concept in self.policy.erase
        )
        shared = SharedMatrix(refinement.names, *refinement.factors)
        kept = self.scale * self.captions.gram
        return fusion(shared, self.adapters, own, kept, self.lamb)

    def theirs(self, concepts: int | None = None) -> list[Tensor]:
        """All of it, or so many concepts."""
        weights = [weight for _, weight in self.base]
        moved, own = [], []
        for concept, adapter in zip(self.policy.erase[:concepts], self.adapters, strict=False):
            prompts = []
            for pair in concept.pairs(self.method.contexts):
                old, new = self.model.encode(pair[:2])
                ids = self.model.tokens(pair.erase), self.model.tokens(pair.anchor)
                first, second = aligned(*ids, len(old))
                moved.append((old[first], new[second]))
                prompts.append(old)
            own.append((prompts, [adapter.up[name] @ adapter.down[name] for name, _ in self.base]))
        captions = self.captions.gram.float()
        refined = mace_refinement(weights, moved, captions, self.scale**2, self.lamb)
        return mace_fusion(weights, refined, own, captions, self.scale, self.lamb)


def check(folder: Path) -> None:
    """See on a small model that both sides compute the same.

    Raises:
        SystemExit: they don't.
    """
    model = load(testing.pipeline(folder))
    one, *kept = phrases(4)
    policy = Policy.of(Concept(target=one, kind="style", keep=kept))
    sides, mace = Sides(model, policy), Mace(model, 3, 4)
    original = {"fidelity": "original"}
    for work, payload, theirs in (
        ("UCE 2023", UCE(**original).solve(model, policy, 0), sides.uce()),
        ("UCE 2025", UCE(**original, variant="2025").solve(model, policy, 0), sides.uce_2025()),
        (
            "RECE",
            RECE(**original, epochs=2, regular_scale=0.1).solve(model, policy, 0),
            sides.rece_epoch(sides.rece_epoch(sides.uce())),
        ),
        ("MACE", mace.ours(), mace.theirs()),
    ):
        names = model.select("cross_attention.kv")
        change = torch.cat([payload.change(name, model.base_weight(name)) for name in names])
        difference = change - (torch.cat(theirs) - torch.cat(sides.weights))
        relative = float(difference.norm() / change.norm())
        print(f"{work}: the changes of both sides differ by {relative:.0e}")
        if not relative < AGREE:
            sys.exit(f"{work}: the transcription computes something else")
