"""What a search found: a prompt as token ids, rows that no prompt needs to have, or weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Self

import torch
from torch import Tensor

from expunge.errors import ExpungeError
from expunge.files import PathLike
from expunge.models import Condition
from expunge.tensors import read, write

ENTRY = "expunge"


class Found(NamedTuple):
    """What brings the concept back: token ids, a condition, or weights for the same prompts."""

    ids: tuple[int, ...] | None = None
    """Of a prompt, without start and end."""
    condition: Condition | None = None
    """Of one prompt; its rows may be no prompt's."""
    weights: Mapping[str, Tensor] | None = None
    """Parameters of the denoiser, by name."""
    loss: float | None = None
    """What the attack lowers, where it ended; ``None`` if it lowers nothing."""

    def save(self, path: PathLike, key: str, calls: int) -> None:
        """Write it, whole or not at all, with what it was found for and what that cost."""
        tensors = {} if self.ids is None else {"ids": torch.tensor(self.ids, dtype=torch.int64)}
        if self.condition is not None:
            tensors |= {"rows": self.condition.rows.contiguous()}
            if self.condition.pooled is not None:
                tensors["pooled"] = self.condition.pooled.contiguous()
            tensors |= {f"extra:{name}": one for name, one in self.condition.extra.items()}
        tensors |= {
            f"weight:{name}": one.contiguous() for name, one in (self.weights or {}).items()
        }
        write(Path(path), ENTRY, {"key": key, "calls": calls, "loss": self.loss}, tensors)

    @classmethod
    def load(cls, path: PathLike, key: str) -> tuple[Self, int] | None:
        """What was saved for the same, and how many calls it took; ``None`` if there is nothing.

        Raises:
            ExpungeError: the file is damaged, or holds what was found for something else.
        """
        if not Path(path).exists():
            return None
        record, tensors = read(path, ENTRY, "finding")
        if record.get("key") != key:
            raise ExpungeError(f"{path} was found by another search; choose another folder")
        found = cls(_ids(tensors), _condition(tensors), _named(tensors, "weight:"), record["loss"])
        return found, int(record["calls"])


def _ids(tensors: dict[str, Tensor]) -> tuple[int, ...] | None:
    return tuple(tensors["ids"].tolist()) if "ids" in tensors else None


def _condition(tensors: dict[str, Tensor]) -> Condition | None:
    if "rows" not in tensors:
        return None
    extra = _named(tensors, "extra:") or {}
    return Condition(tensors["rows"], tensors.get("pooled"), extra)


def _named(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor] | None:
    """Tensors whose names begin so, without that; ``None`` if there are none."""
    named = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    return named or None
