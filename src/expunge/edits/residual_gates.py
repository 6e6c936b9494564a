"""Residual attention gates: what CPE adds to keys and values of tokens that belong to a concept.

Concept n looks at the prompt's embedding X ``[tokens, width]`` with one small attention of its own
and opens a gate for each token; every layer l then has two thin factors (Lee et al., ICLR 2025)::

    P_n = X Q_n     A_n = softmax(P_n P_n^T)     E_n = A_n X     g_n = sigmoid(E_n s_n)

    out_l = X W_l^T + g_n E_n D_nl U_nl

On each token the concept with the largest gate acts; among equal ones, the first. The
gates need only ``g_n = sigmoid(A_n (X s_n))``. So all concepts' scores are two products, in chunks
of concepts with the best gate so far, and ``E`` is computed for the winners alone, once for all
layers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from expunge.edits.gates import Addition, Tokens, row_digest
from expunge.errors import ExpungeError

CHUNK = 2**22
"""Numbers per chunk of concepts, so that memory doesn't grow with the number of concepts."""
REMEMBERED = 64
"""Prompts whose gates are kept, among them the empty one of guidance."""


def attention(rows: Tensor, query: Tensor, key: Tensor | None = None) -> Tensor:
    """``A_n``, ``[concepts, tokens, tokens]``.

    ``rows`` are ``[tokens, width]``, the maps ``[concepts, rank, width]``; without ``key`` the
    query map serves on both sides.
    """
    asked = projected(rows, query)
    given = asked if key is None else projected(rows, key)
    return (asked.mT @ given).softmax(-1)


def projected(rows: Tensor, maps: Tensor) -> Tensor:
    """``M_n X^T``, ``[concepts, rank, tokens]``, by one product for all concepts."""
    return (maps.flatten(0, 1) @ rows.mT).view(*maps.shape[:2], len(rows))


def openings(rows: Tensor, query: Tensor, key: Tensor | None, gate: Tensor) -> Tensor:
    """``g_n``, ``[concepts, tokens]``; ``gate`` is ``[concepts, width]``."""
    weighed = attention(rows, query, key) @ (gate @ rows.mT)[..., None]
    return torch.sigmoid(weighed[..., 0])


class Opened(NamedTuple):
    """What the gates make of one prompt."""

    winner: Tensor
    """The concept that acts on each token, ``[tokens]``."""
    opening: Tensor
    """Its gate, ``[tokens]``."""
    edited: Tensor
    """Its ``g E``, ``[tokens, width]``."""
    reduced: Tensor
    """Its ``g E D_l`` for every layer, ``[tokens, layers, rank]``."""


@dataclass(frozen=True, eq=False)
class ResidualGates:
    """The gates of one concept or of many, for keys and values of the cross-attention."""

    form: ClassVar[str] = "residual_gates"
    reads_text: ClassVar[bool] = True
    reads_tokens: ClassVar[bool] = False

    names: tuple[str, ...]
    query: Tensor
    """``Q``, ``[concepts, gate rank, width]``."""
    key: Tensor | None
    """The map of the other side, shaped like ``query``; ``None`` if it is the same."""
    gate: Tensor
    """``s``, ``[concepts, width]``."""
    down: Tensor
    """``D``, ``[concepts, layers, rank, width]``."""
    up: Tensor
    """``U`` of all layers side by side, scaled, ``[concepts, rank, sum of widths]``."""
    widths: tuple[int, ...]
    """Outputs of each layer."""
    _elsewhere: dict[tuple[torch.device, torch.dtype], "ResidualGates"] = field(
        default_factory=dict, repr=False
    )
    _known: dict[bytes, Opened] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        concepts, layers, rank, width = self.down.shape
        wanted = {
            "query": (concepts, self.query.shape[1], width),
            "gate": (concepts, width),
            "up": (concepts, rank, sum(self.widths)),
            **({} if self.key is None else {"key": tuple(self.query.shape)}),
        }
        for name, shape in wanted.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ExpungeError(
                    f"residual gates: {name} has shape {tuple(getattr(self, name).shape)} where "
                    f"{shape} is needed; the file is damaged"
                )
        if layers != len(self.names) or layers != len(self.widths):
            raise ExpungeError(
                f"residual gates: factors of {layers} layers, and names of {len(self.names)}"
            )

    def __len__(self) -> int:
        """How many concepts."""
        return len(self.gate)

    def tensors(self) -> dict[str, Tensor]:
        key = {} if self.key is None else {"key": self.key}
        parts = {"query": self.query, **key, "gate": self.gate, "down": self.down, "up": self.up}
        return {**parts, "widths": torch.tensor(self.widths)}

    @classmethod
    def of(cls, names: tuple[str, ...], tensors: Mapping[str, Tensor]) -> "ResidualGates":
        widths = tuple(int(width) for width in tensors["widths"])
        gate, down, up = (tensors[part] for part in ("gate", "down", "up"))
        return cls(names, tensors["query"], tensors.get("key"), gate, down, up, widths)

    @classmethod
    def joined(cls, gates: "Sequence[ResidualGates]") -> "ResidualGates":
        """All concepts in order; ranks differ by rows of zeros, which change nothing."""
        first, *others = gates
        if not others:
            return first
        for other in others:
            if (other.names, other.widths) != (first.names, first.widths):
                raise ExpungeError("these gates are for different layers and can't act together")
        key = None
        if any(one.key is not None for one in gates):
            key = _stacked([one.query if one.key is None else one.key for one in gates], 1)
        return cls(
            first.names,
            _stacked([one.query for one in gates], 1),
            key,
            torch.cat([one.gate for one in gates]),
            _stacked([one.down for one in gates], 2),
            _stacked([one.up for one in gates], 1),
            first.widths,
        )

    def additions(self, conditions: Tensor, tokens: Tokens) -> Mapping[str, Addition]:
        """``g E D_l U_l`` of each token's winner, computed in single precision at least.

        A prompt's numbers don't depend on the others of the batch.
        """
        here = self.on(conditions.device, torch.promote_types(conditions.dtype, torch.float32))
        opened = [here.opened(rows) for rows in conditions]
        winner = torch.stack([one.winner for one in opened])
        reduced = torch.stack([one.reduced for one in opened])
        return {
            name: partial(_added, up, winner, reduced[:, :, layer])
            for layer, (name, up) in enumerate(zip(here.names, here.ups, strict=True))
        }

    def opening(self, conditions: Tensor, tokens: Tokens) -> Tensor:
        """The widest gate of any token for each prompt, ``[batch]``."""
        here = self.on(conditions.device, torch.promote_types(conditions.dtype, torch.float32))
        widest = [
            openings(rows.to(here.up.dtype), here.query, here.key, here.gate).max()
            for rows in conditions
        ]
        return torch.stack(widest)

    @property
    def ups(self) -> tuple[Tensor, ...]:
        """``U_l`` of each layer, ``[concepts, rank, out]``."""
        return torch.split(self.up, list(self.widths), -1)

    def on(self, device: torch.device, dtype: torch.dtype) -> "ResidualGates":
        """The same gates on a device, in a precision."""
        if (self.up.device, self.up.dtype) == (device, dtype):
            return self
        if (device, dtype) not in self._elsewhere:
            moved = {name: part.to(device, dtype) for name, part in self.tensors().items()}
            self._elsewhere[device, dtype] = ResidualGates.of(self.names, moved)
        return self._elsewhere[device, dtype]

    def opened(self, rows: Tensor) -> Opened:
        """The opened gates for one prompt's embedding ``[tokens, width]``; has gradients."""
        if torch.is_grad_enabled() and rows.requires_grad:
            return self._open(rows.to(self.up.dtype))
        prompt = row_digest(rows.detach())
        known = self._known.get(prompt)
        if known is None:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            with torch.no_grad():
                known = self._known[prompt] = self._open(rows.to(self.up.dtype))
        return known

    @torch.no_grad()
    def winner(self, rows: Tensor) -> Tensor:
        """The concept with the largest gate for each token, ``[tokens]``."""
        count, rank, _ = self.query.shape
        size = max(1, CHUNK // (len(rows) * (len(rows) + 2 * rank)))
        best, winner = rows.new_full((len(rows),), -1.0), rows.new_zeros(len(rows)).long()
        for start in range(0, count if count > 1 else 0, size):
            part = slice(start, start + size)
            key = None if self.key is None else self.key[part]
            top, which = openings(rows, self.query[part], key, self.gate[part]).max(0)
            winner = torch.where(top > best, start + which, winner)
            best = torch.maximum(top, best)
        return winner

    def _open(self, rows: Tensor) -> Opened:
        winner = self.winner(rows)
        distinct, which = torch.unique(winner, return_inverse=True)
        key = None if self.key is None else self.key[distinct]
        looks = attention(rows, self.query[distinct], key)[which, torch.arange(len(rows))]
        opening = torch.sigmoid((looks * (self.gate[winner] @ rows.mT)).sum(-1, keepdim=True))
        edited = opening * (looks @ rows)
        order = which.argsort(stable=True)
        groups = torch.split(edited[order], which.bincount(minlength=len(distinct)).tolist())
        factors = (self.down[concept].flatten(0, 1) for concept in distinct.tolist())
        reduced = torch.cat([group @ down.mT for group, down in zip(groups, factors, strict=True)])
        layers = reduced[order.argsort()].view(len(rows), *self.down.shape[1:3])
        return Opened(winner, opening[:, 0], edited, layers)


def _stacked(parts: Sequence[Tensor], axis: int) -> Tensor:
    """One below the other, with zeros appended along an axis where some are longer."""
    most = max(part.shape[axis] for part in parts)
    after = [0, 0] * (parts[0].ndim - 1 - axis)
    return torch.cat([pad(part, (*after, 0, most - part.shape[axis])) for part in parts])


def _added(up: Tensor, winner: Tensor, reduced: Tensor, inputs: Tensor) -> Tensor:
    """``Z U`` with each token's own factors, ``[batch, tokens, out]``."""
    total = reduced[..., 0, None] * up[:, 0][winner]
    for row in range(1, up.shape[1]):
        total = total + reduced[..., row, None] * up[:, row][winner]
    return total
