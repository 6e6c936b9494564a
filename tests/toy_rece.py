"""RECE computed layer by layer, as its equations say, for tests; and what they erase."""

import torch
from torch import Tensor

from expunge import Concept, Model, Policy
from expunge.edits.payloads import Change
from expunge.methods.rece.method import RECE

POLICY = Policy(
    erase=(Concept(target="ghost", anchor="man"), Concept(target="santa claus", anchor="")),
    keep=("dog",),
)


def changes(model: Model, payload: object) -> Tensor:
    """Changes of all projections under each other, ``[all outputs, width]``."""
    return torch.cat([payload.change(n, model.base_weight(n)) for n in payload.names])


def close(ours: Tensor, theirs: Tensor) -> bool:
    return bool((ours - theirs).norm() <= 1e-9 * theirs.norm())


class Literal:
    """The released program's loops, layer by layer, with explicit inverses, in float64."""

    def __init__(
        self, model: Model, method: RECE, policy: Policy, stage: Change | None = None
    ) -> None:
        self.model, self.method = model, method
        self.identity = torch.eye(model.text_width, dtype=torch.float64)
        stage = stage or method.uce.solve(model, policy, 0)
        names = model.select("cross_attention.kv")
        self.base = {name: model.base_weight(name).double() for name in names}
        self.now = {name: w + stage.change(name, w) for name, w in self.base.items()}
        self.rows, self.anchors, self.kept = (
            [model.encode([words])[0].double() for words in column]
            for column in (
                [concept.target for concept in policy.erase],
                [concept.replacement for concept in policy.erase],
                ["", *policy.kept],
            )
        )
        targets = method.targets or [None] * len(self.rows)
        self.targets = [None if t is None else model.encode([t])[0].double() for t in targets]

    def embedding(self, rows: Tensor, target: Tensor | None) -> Tensor:
        r, one = self.method.regular_scale, self.identity
        h, s = torch.zeros_like(one), torch.zeros_like(one)
        for name, weight in self.now.items():
            h += weight.T @ weight
            s += weight.T @ self.base[name]
        if self.method.embedding == "zero":
            return rows @ (torch.linalg.inv(r * one + h) @ s).T
        if target is not None:
            return (r * target + rows @ s.T) @ torch.linalg.inv(r * one + h)
        form = self.method.regularization
        if form == "outputs":
            return rows @ (torch.linalg.inv((1 + r) * h) @ (s + r * h)).T
        if form == "embedding":
            return rows @ (torch.linalg.inv(r * one + h) @ (r * one + s)).T
        return rows @ (torch.linalg.inv(r * one + (1 + r) * h) @ (r * one + s + r * h)).T

    def epoch(self) -> list[Tensor]:
        """One epoch; the adversarial embedding of each concept."""
        a, p, lamb = self.method.erase_scale, 0.1, self.method.lamb
        found = [self.embedding(*pair) for pair in zip(self.rows, self.targets, strict=True)]
        for name, weight in self.now.items():
            left, right = lamb * weight, lamb * self.identity
            for source, anchor in zip(found, self.anchors, strict=True):
                value = anchor @ weight.T
                if self.method.technique == "tensor":
                    unit = source @ weight.T / (source @ weight.T).norm()
                    value = value - (unit * value).sum() * unit
                left, right = left + a * value.T @ source, right + a * source.T @ source
            for kept in self.kept:
                left, right = left + p * weight @ kept.T @ kept, right + p * kept.T @ kept
            self.now[name] = left @ torch.linalg.inv(right)
        return found
