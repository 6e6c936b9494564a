"""Semi-permeable membranes: low-rank changes of many layers, scaled by the prompt's closeness.

A concept's membrane is a product of two thin factors for each linear layer and 1 x 1 convolution
of the UNet's transformers. How far it opens depends only on the prompt, on what it shares with the
erased phrases: "facilitated transport" of SPM (Lyu et al., CVPR 2024, section 3.3).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from expunge.edits.factors import PerPromptWeights, are_thin, through
from expunge.edits.gates import Addition, Tokens
from expunge.errors import ExpungeError

Rule = Literal["paper", "released"]
"""How membranes add up: ``sum g_i U_i D_i``, or ``(sum g_i U_i) (sum g_j D_j)``."""

Metric = Literal["clipcos", "tokenuni", "clipcos_tokenuni", "allone"]
"""Closeness: cosine of the embeddings, share of the phrase's tokens, the larger one, always 1."""

MOST_RUNS = 8
"""Most different prompts in a batch for which whole weights are kept instead of factors."""

_Factors = Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Membranes:
    """Adds ``sum_i g_i U_i D_i x`` to the output of each layer, for one or many concepts ``i``.

    ``g_i`` is ``strengths[i]`` times the largest closeness of the prompt to a phrase of concept
    ``i``. In a batch every prompt has its own; the empty or negative prompt of guidance too.
    """

    form: ClassVar[str] = "membranes"
    reads_text: ClassVar[bool] = True
    reads_tokens: ClassVar[bool] = True

    up: Mapping[str, Tensor]
    """``U`` of all concepts side by side for each layer's weight, ``[out, rank]``."""
    down: Mapping[str, Tensor]
    """``D`` of all concepts one below the other, ``[rank, in]``."""
    owners: Tensor
    """The concept of each of these columns and rows, ``[rank]``, from 0 and in order."""
    embeddings: Tensor
    """Embedding of each erased phrase, flattened and of length 1, ``[phrases, rows * width]``."""
    tokens: Tensor
    """Different token ids of each phrase, filled up with -1, ``[phrases, most]``."""
    concerns: Tensor
    """The concept of each phrase, ``[phrases]``."""
    strengths: Tensor
    """Factor of each concept's closeness, ``[concepts]``."""
    rule: Rule = "paper"
    metric: Metric = "clipcos_tokenuni"

    def __post_init__(self) -> None:
        ranks = self.owners.bincount(minlength=len(self.strengths))
        if self.rule == "released" and len(set(ranks.tolist())) > 1:
            raise ExpungeError(
                f"membranes of the ranks {', '.join(map(str, ranks.tolist()))} can't be added up "
                'by the rule "released", only by "paper"'
            )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.up)

    @classmethod
    def made(
        cls,
        up: Mapping[str, Tensor],
        down: Mapping[str, Tensor],
        embeddings: Tensor,
        tokens: Sequence[Sequence[int]],
        *,
        strength: float = 1.0,
        rule: Rule = "paper",
        metric: Metric = "clipcos_tokenuni",
    ) -> "Membranes":
        """The membrane of one concept.

        Args:
            up: ``U`` for each weight, ``[out, rank]``.
            down: ``D`` for each weight, ``[rank, in]``.
            embeddings: of the erased phrases, ``[phrases, rows, width]``.
            tokens: token ids of each phrase, without start and end.
            strength: factor of the closeness.
            rule: how it adds up with others.
            metric: what closeness is.
        """
        ids = [sorted(set(phrase)) for phrase in tokens]
        longest = max(map(len, ids))
        padded = [[*phrase, *[-1] * (longest - len(phrase))] for phrase in ids]
        rank = len(next(iter(down.values())))
        return cls(
            {name: factor.detach().cpu() for name, factor in up.items()},
            {name: factor.detach().cpu() for name, factor in down.items()},
            torch.zeros(rank, dtype=torch.int64),
            normalize(embeddings.detach().cpu().float().flatten(1), dim=1),
            torch.tensor(padded, dtype=torch.int64),
            torch.zeros(len(ids), dtype=torch.int64),
            torch.tensor([strength], dtype=torch.float32),
            rule,
            metric,
        )

    @classmethod
    def joined(cls, gates: Sequence["Membranes"]) -> "Membranes":
        """All membranes as one stack; layers that a membrane leaves alone are zero in it.

        Raises:
            ExpungeError: they follow different rules, or are for different models.
        """
        first = gates[0]
        for setting in ("rule", "metric"):
            found = sorted({getattr(gate, setting) for gate in gates})
            if len(found) > 1:
                raise ExpungeError(
                    f"membranes with {setting} {' and '.join(found)} can't act together; make or "
                    f"import them with the same {setting}"
                )
        if len({gate.embeddings.shape[1] for gate in gates}) > 1:
            raise ExpungeError("these membranes are for models with different text encoders")
        if len(gates) == 1:
            return first
        most = max(gate.tokens.shape[1] for gate in gates)
        names = dict.fromkeys(name for gate in gates for name in gate.names)
        stacks = {name: _stacked(gates, name) for name in names}
        return cls(
            {name: up for name, (up, _) in stacks.items()},
            {name: down for name, (_, down) in stacks.items()},
            _numbered([gate.owners for gate in gates], gates),
            torch.cat([gate.embeddings for gate in gates]),
            torch.cat([pad(g.tokens, (0, most - g.tokens.shape[1]), value=-1) for g in gates]),
            _numbered([gate.concerns for gate in gates], gates),
            torch.cat([gate.strengths for gate in gates]),
            first.rule,
            first.metric,
        )

    def tensors(self) -> dict[str, Tensor]:
        codes = [get_args(Rule).index(self.rule), get_args(Metric).index(self.metric)]
        return {
            **{f"up:{name}": factor for name, factor in self.up.items()},
            **{f"down:{name}": factor for name, factor in self.down.items()},
            "owners": self.owners,
            "embeddings": self.embeddings,
            "tokens": self.tokens,
            "concerns": self.concerns,
            "strengths": self.strengths,
            "rule and metric": torch.tensor(codes),
        }

    @classmethod
    def of(cls, names: tuple[str, ...], tensors: Mapping[str, Tensor]) -> "Membranes":
        rule, metric = tensors["rule and metric"].tolist()
        return cls(
            {name: tensors[f"up:{name}"] for name in names},
            {name: tensors[f"down:{name}"] for name in names},
            tensors["owners"],
            tensors["embeddings"],
            tensors["tokens"],
            tensors["concerns"],
            tensors["strengths"],
            get_args(Rule)[rule],
            get_args(Metric)[metric],
        )

    # --- how far they open

    def closeness(self, conditions: Tensor, tokens: Tokens) -> Tensor:
        """How close each prompt is to each phrase, ``[batch, phrases]``, float32.

        ``conditions`` are ``[batch, rows, width]``. Where a prompt's tokens aren't known, the
        cosine stands in for their share.

        Raises:
            ExpungeError: the embeddings aren't of the size that the phrases' have.
        """
        flat = normalize(conditions.float().flatten(1), dim=1)
        if flat.shape[1] != self.embeddings.shape[1]:
            raise ExpungeError(
                f"a prompt's embedding has {flat.shape[1]} numbers, those of the erased phrases "
                f"{self.embeddings.shape[1]}; give the text encoder's own, of one window"
            )
        cosines = flat @ self.embeddings.to(flat.device).T
        if self.metric == "allone":
            return torch.ones_like(cosines)
        if self.metric == "clipcos":
            return cosines
        shares = torch.stack(
            [
                cosine if known is None else self._share(known).to(cosine)
                for cosine, known in zip(cosines, tokens, strict=True)
            ]
        )
        return shares if self.metric == "tokenuni" else torch.maximum(cosines, shares)

    def opened(self, conditions: Tensor, tokens: Tokens) -> Tensor:
        """``g``, ``[batch, concepts]``, float32."""
        close = self.closeness(conditions, tokens)
        concerns = self.concerns.to(close.device).expand(len(close), -1)
        start = close.new_zeros(len(close), len(self.strengths))
        nearest = start.scatter_reduce(1, concerns, close, "amax", include_self=False)
        return nearest * self.strengths.to(close.device)

    def opening(self, rows: Tensor, tokens: Tokens) -> Tensor:
        """``max_i g_i`` of each prompt, ``[batch]``."""
        return self.opened(rows, tokens).amax(1)

    def _share(self, known: Sequence[int]) -> Tensor:
        """The share of each phrase's tokens that are in a prompt, ``[phrases]``."""
        found = torch.isin(self.tokens, torch.tensor(list(known), dtype=torch.int64))
        return found.sum(1) / (self.tokens >= 0).sum(1).clamp(min=1)

    # --- what they add

    def additions(self, conditions: Tensor, tokens: Tokens) -> dict[str, Addition]:
        opened = self.opened(conditions, tokens)[:, self.owners.to(conditions.device)]
        weights = opened.to(conditions.dtype)
        once = torch.is_grad_enabled() or conditions.is_inference()  # then nothing may be kept
        rows, counts = torch.unique_consecutive(weights, dim=0, return_counts=True)
        runs = list(zip(counts.tolist(), rows, strict=True))
        fold = self.rule == "paper" and not once and len(runs) <= MOST_RUNS
        factors = self._factors_for(weights.device, weights.dtype)
        return {
            name: PerPromptWeights(up, down, runs)
            if fold and not are_thin(up, down)
            else partial(through, factors=self._products(weights, up, down))
            for name, (up, down) in factors.items()
        }

    def _products(self, weights: Tensor, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        """What a batch is multiplied by, ``[in, k]`` (or one each) and ``[batch, k, out]``.

        ``weights`` are ``[batch, rank]``.
        """
        above = weights[:, :, None] * up.T
        if self.rule == "paper":
            return down.T, above
        below = weights[:, :, None] * down
        above, below = (
            part.reshape(len(weights), len(self.strengths), -1, part.shape[2]).sum(1)
            for part in (above, below)
        )
        return below.mT, above

    def _factors_for(self, device: torch.device, dtype: torch.dtype) -> _Factors:
        """The factors on a device in a precision, where they stay for the next prompt."""
        if (device, dtype) not in self._copies:
            self._copies[device, dtype] = {
                name: (up.to(device, dtype), self.down[name].to(device, dtype))
                for name, up in self.up.items()
            }
        return self._copies[device, dtype]

    @cached_property
    def _copies(self) -> dict[tuple[torch.device, torch.dtype], _Factors]:
        return {}


def _stacked(gates: Sequence[Membranes], name: str) -> tuple[Tensor, Tensor]:
    """All factors of one layer; a membrane that leaves it alone has zeros there."""
    own = [gate for gate in gates if name in gate.up]
    sizes = {(len(gate.up[name]), gate.down[name].shape[1]) for gate in own}
    if len(sizes) > 1:
        raise ExpungeError(f"these membranes are for different models: {name} has two sizes")
    [(out, into)] = sizes
    ups = [g.up.get(name, torch.zeros(out, len(g.owners))) for g in gates]
    downs = [g.down.get(name, torch.zeros(len(g.owners), into)) for g in gates]
    return torch.cat(ups, 1), torch.cat(downs)


def _numbered(concepts: Sequence[Tensor], gates: Sequence[Membranes]) -> Tensor:
    """Numbers of the gates' concepts, counted through all of them."""
    counts = [0, *(len(gate.strengths) for gate in gates[:-1])]
    starts = torch.tensor(counts).cumsum(0).tolist()
    return torch.cat([own + start for own, start in zip(concepts, starts, strict=True)])
