"""The embeddings of prompts to keep, in the form that each kind of method needs."""

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from expunge.algebra.ridge import gram, kept_rows
from expunge.concepts import Context, Policy
from expunge.edits.ridge import Stays
from expunge.errors import ExpungeError
from expunge.method.base import Method
from expunge.models import Model
from expunge.prior import PriorSetting, everyday_prior, is_everyday, left_out, mean_moment
from expunge.prompts.everyday import everyday, unnamed
from expunge.seeding import generator

PROMPTS = 64
"""Number of prompts encoded at a time."""
EVERYDAY = 200
"""Everyday prompts that a training keeps by default."""


def kept_count(name: str, size: int, share: float) -> int:
    """How many of ``size`` rows a share is; none or all only if the share is 0 or 1.

    Raises:
        ExpungeError: there is only one row, which can't be shared.
    """
    if share in (0, 1):
        return round(size * share)
    if size < 2:
        raise ExpungeError(
            f"keep_share: {share:g} of {name}={size} leaves nothing to erase or nothing to keep; "
            f"raise {name} to 2 or more, or set keep_share=0"
        )
    return min(size - 1, max(1, round(size * share)))


class KeepsEveryday(Method):
    """A training that keeps everyday prompts where nothing to keep is named."""

    everyday: int = Field(EVERYDAY, ge=0)
    """How many everyday prompts stay where nothing to keep is named: a random choice, without those
    that name what is erased. 0: none."""

    @classmethod
    def with_released(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """An original run keeps no everyday prompts."""
        return {"everyday": 0, **super().with_released(values)}

    @model_validator(mode="after")
    def _everyday_known(self) -> Self:
        if self.fidelity == "original" and self.everyday:
            raise ValueError('everyday: only with fidelity="corrected"')
        return self

    def stays(self, policy: Policy, contexts: tuple[Context, ...], seed: int) -> tuple[str, ...]:
        """The prompts to keep: those that the policy names, or else everyday ones."""
        return policy.kept_prompts(contexts) or self.everyday_prompts(policy, seed)

    def everyday_prompts(self, policy: Policy, seed: int) -> tuple[str, ...]:
        """The everyday prompts that stay, in random order; none if the policy names what to keep.

        None of them names what is erased.
        """
        if policy.kept or not self.everyday:
            return ()
        prompts = everyday()
        free = {*unnamed(prompts, policy.phrases)}
        order = torch.randperm(len(prompts), generator=generator(seed, "everyday")).tolist()
        left = (prompts[at] for at in order if prompts[at] in free)
        return tuple(islice(left, self.everyday))


class KeepsPrior(Method):
    """A method that keeps ordinary prompts, though nobody names them."""

    released_prior: ClassVar[bool] = False
    """Whether the released program keeps the prompts of a file."""

    prior: PriorSetting = "default"
    """Ordinary prompts that stay: ``default`` for everyday ones, without those that name what is
    erased; ``none``; or a file written by ``expunge prior``."""

    @classmethod
    def with_released(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """An original run has no prior unless it is given one."""
        return {"prior": None, **super().with_released(values)}

    @model_validator(mode="after")
    def _prior_known(self) -> Self:
        ours = self.prior == "default" or (self.prior is not None and not self.released_prior)
        if self.fidelity == "original" and ours:
            raise ValueError('prior: only with fidelity="corrected"')
        return self

    def settled(self, model: Model) -> Self:
        """The same settings, with the default prior in place."""
        if self.prior != "default":
            return self
        return self.model_copy(update={"prior": everyday_prior(model)})

    def staying(self, model: Model, policy: Policy, named: Tensor, weight: float) -> Stays:
        """What stays: the named rows ``[kept, width]``, and the prior.

        Args:
            model: the model that is edited.
            policy: what is erased; everyday prompts that name it don't stay.
            named: rows of what the policy keeps, times the root of their weight.
            weight: that of a prompt of the average prior.

        Raises:
            ExpungeError: the prior is of another text encoder.
        """
        prior = self.settled(model).prior
        if prior is None or prior == "default" or not weight:
            return Stays(named)
        prior.check(model)
        phrases = [phrase for concept in policy.erase for phrase in concept.phrases]
        out = left_out(model, prior, phrases)
        total = gram(named) + weight * prior.mean.to(named.device)
        out = out and out.scaled(weight / prior.metadata.count)
        return Stays.summed(total, out, rounded=is_everyday(prior))

    def kept_words(
        self, model: Model, policy: Policy, prompts: tuple[str, ...], scale: float
    ) -> dict[str, Tensor]:
        """The mean Gram matrix ``kept_words`` of what to keep, ``[width, width]`` float32.

        The ``prompts`` and the prior weigh the same. Empty if there is neither, or with a weight
        ``scale`` of 0.
        """
        parts = [mean_moment(model, prompts)] if prompts and scale else []
        nothing = torch.zeros(0, model.text_width, dtype=torch.float64, device=model.device)
        if scale and len(rows := self.staying(model, policy, nothing, 1.0).rows):
            parts.append(gram(rows).float())
        return {"kept_words": torch.stack(parts).mean(0)} if parts else {}


def kept_with_empty(policy: Policy, contexts: tuple[Context, ...]) -> tuple[str, ...]:
    """The empty prompt and everything that a policy keeps, bare and in sentences, each once."""
    return tuple(dict.fromkeys(("", *policy.kept_prompts(contexts))))


def weighed_rows(
    encode: Callable[[Sequence[str]], Tensor],
    prompts: Sequence[str],
    weight: float,
    width: int,
    at_a_time: int = PROMPTS,
) -> Tensor:
    """Rows of some prompts, times the root of their weight, ``[kept, width]`` float64.

    Args:
        encode: the rows to keep of a few prompts, ``[..., width]``.
        prompts: what is kept.
        weight: the weight of each row.
        width: the width of a row, needed if there is none.
        at_a_time: how many prompts are encoded before their rows are summed.
    """
    blocks = (prompts[at : at + at_a_time] for at in range(0, len(prompts), at_a_time))
    return kept_rows((encode(block) for block in blocks), weight, width)
