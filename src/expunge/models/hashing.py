"""What tells weights from others, in any precision: digests, each computed once, and samples.

A digest is remembered by the *marks* of its tensors: sums of their bits, read as fast as memory
gives them. So it costs a tenth when it is asked for again, whichever tensor holds the same numbers
by then, and no way of writing into a tensor goes unnoticed, not even through ``.data``. Digests of
much are remembered in the cache folder too, for other processes. Tensors that lie in a file are
known again by its place, size and times; then they aren't even read.
"""

import base64
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from expunge.files import cache_folder, replacing

HALF = (torch.float16,)
"""How fingerprints round: once to half precision, whatever the weights are in."""
BFLOAT16 = ((torch.bfloat16, torch.float16), (torch.float16, torch.bfloat16, torch.float16))
"""The same of these weights in bfloat16, taken from float32 or from float16 files: the second are
rounded twice, which gives one in sixteen another value."""

REMEMBERED = 256
"""Digests that are kept in memory."""
MUCH = 2**26
"""Bytes from which a digest is kept in the cache folder too."""
WORDS = 512
"""Words of eight bytes in a row of a mark's sums."""
SAMPLED = 512
"""Numbers of a sample, at least one of each tensor."""


class Named(Protocol):
    """Tensors with their names, gone through more than once."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[str, Tensor]]: ...


class Each:
    """Tensors with their names, one in memory at a time where they are read from elsewhere.

    ``stamp`` tells all their numbers from others without reading any, if something does.
    """

    def __init__(
        self, entries: Sequence[tuple[str, Callable[[], Tensor]]], stamp: str = ""
    ) -> None:
        self.entries = entries
        self.stamp = stamp

    @classmethod
    def joined(cls, parts: Sequence["Each"]) -> "Each":
        """Those of several, one after the other."""
        stamps = [part.stamp for part in parts]
        entries = [entry for part in parts for entry in part.entries]
        return cls(entries, " ".join(stamps) if all(stamps) else "")

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, read()) for name, read in self.entries)


class Roundings(BaseModel):
    """What weights are in bfloat16, so that they are known again in another precision.

    Weights in float32 tell exactly what they are in float16 and in bfloat16, so digests are
    enough. Weights in float16 don't tell what the float32 ones are in bfloat16: half-way between
    two numbers it may be either. There, numbers spread evenly through all tensors are compared.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bfloat16: tuple[str, str]
    """Fingerprints of the same weights in bfloat16: taken from float32, and from float16."""
    sample: str
    """Numbers spread evenly through the tensors, float32 in base64."""

    @classmethod
    def of(cls, tensors: Named) -> "Roundings":
        """Those of tensors by name."""
        once, twice = digests(tensors, *BFLOAT16)
        if marks := _stamped(tensors):
            sample = _remembered(f"{marks}-sample", partial(_sample, tensors), kept=True)
        else:
            sample = _sample(tensors)
        return cls(bfloat16=(once, twice), sample=sample)

    def rounded_alike(self, other: "Roundings") -> bool:
        """Whether one may be the float16, the other the bfloat16 of the same float32 weights."""
        one, two = self._numbers, other._numbers
        return one.shape == two.shape and (_alike(one, two) or _alike(two, one))

    @property
    def in_bfloat16(self) -> bool:
        """Whether the weights were rounded to bfloat16."""
        return _is_in(self._numbers, torch.bfloat16)

    @property
    def _numbers(self) -> Tensor:
        stored = np.frombuffer(base64.b64decode(self.sample), np.float32)
        return torch.from_numpy(stored.copy())


def _sample(tensors: Named) -> str:
    each = max(1, SAMPLED // max(1, len(tensors)))
    numbers = [_spread(value, each) for _, value in tensors]
    sample = np.concatenate(numbers) if numbers else np.zeros(0, np.float32)
    return base64.b64encode(sample.tobytes()).decode()


def _spread(value: Tensor, count: int) -> "np.ndarray[tuple[int], np.dtype[np.float32]]":
    flat = value.detach().reshape(-1)
    places = torch.arange(min(count, len(flat)), device=flat.device) * len(flat)
    found: np.ndarray[tuple[int], np.dtype[np.float32]] = (
        flat[places // max(1, min(count, len(flat)))].float().cpu().numpy()
    )
    return found


def _alike(half: Tensor, brain: Tensor) -> bool:
    """Whether numbers in float16 and others in bfloat16 may be roundings of the same."""
    if not (_is_in(half, torch.float16) and _is_in(brain, torch.bfloat16)):
        return False
    step = (half.abs() * 2**-11).clamp(min=2**-25)  # half-precision numbers lie two steps apart
    lowest, highest = ((half + side).bfloat16().float() for side in (-step, step))
    return bool(((lowest <= brain) & (brain <= highest)).all())


def _is_in(numbers: Tensor, precision: torch.dtype) -> bool:
    return torch.equal(numbers.to(precision).float(), numbers)


def digest(tensors: Named) -> str:
    """Hex SHA-256 of tensors and their names, rounded to half precision."""
    return digests(tensors, HALF)[0]


def digests(tensors: Named, *ways: Sequence[torch.dtype]) -> list[str]:
    """Hex SHA-256 of tensors and their names, each rounded to one precision after the other.

    The tensors are looked at once for all ways of rounding.
    """
    marks, kept = _stamped(tensors), True
    if not marks:
        marks, kept = _marks(tensors)
    return [
        _remembered(
            "-".join((marks, *(str(one).removeprefix("torch.") for one in precisions))),
            partial(_hashed, tensors, precisions),
            kept=kept,
        )
        for precisions in ways
    ]


def _stamped(tensors: Named) -> str:
    """What tells tensors from others without a look at them; empty if nothing does."""
    if not isinstance(tensors, Each) or not tensors.stamp:
        return ""
    names = "".join(f"{name};" for name, _ in tensors.entries)
    return hashlib.sha256(f"{tensors.stamp} {names}".encode()).hexdigest()


def _marks(tensors: Named) -> tuple[str, bool]:
    """The marks of tensors, and whether they are so many that their digest should be kept."""
    total, size = hashlib.sha256(), 0
    for name, value in tensors:
        total.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
        total.update(_mark(value.detach()))
        size += value.nbytes
    return total.hexdigest(), size >= MUCH


def _remembered(key: str, compute: Callable[[], str], *, kept: bool) -> str:
    """What was computed for a key, in this process or, if it is ``kept``, in any."""
    file = cache_folder() / "digests" / key if kept else None
    with _lock:
        if found := _known.get(key):
            _known.move_to_end(key)
            return found
    made = file and _read(file)
    if not made:
        made = compute()
        if file:
            _write(file, made)
    with _lock:
        _known[key] = made
        while len(_known) > REMEMBERED:
            _known.popitem(last=False)
    return made


def _read(file: Path) -> str | None:
    """What a file remembers; none if there is none, or it is damaged."""
    try:
        found, _, check = file.read_text("ascii").partition(" ")
    except (OSError, UnicodeDecodeError):
        return None
    return found if check == _check(found) else None


def _write(file: Path, made: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as path:
            path.write_text(f"{made} {_check(made)}", "ascii")
    except OSError:  # it is computed again next time
        pass


def _check(made: str) -> str:
    return hashlib.sha256(made.encode()).hexdigest()[:16]


def _hashed(tensors: Named, precisions: Sequence[torch.dtype]) -> str:
    total = hashlib.sha256()
    for name, value in tensors:
        total.update(f"{name}{tuple(value.shape)}".encode())
        rounded = value.detach().cpu()
        for precision in precisions:
            rounded = rounded.to(precision)
        total.update(_bytes(rounded).numpy().data)
    return total.hexdigest()


_known: "OrderedDict[str, str]" = OrderedDict()
_lock = Lock()


def _mark(value: Tensor) -> bytes:
    """Sums of a tensor's bits by rows and by columns, which no change leaves as they are."""
    flat = _bytes(value)
    whole = flat.numel() // (8 * WORDS) * 8 * WORDS
    words: Any = flat[:whole].view(torch.int64).view(-1, WORDS)
    if words.device.type == "cpu":  # where numpy is faster, and waits for no busy thread
        words = words.numpy()
    parts = (words.sum(0), words.sum(1), flat[whole:])
    return b"".join(torch.as_tensor(part).cpu().numpy().tobytes() for part in parts)


def _bytes(value: Tensor) -> Tensor:
    """The bits of a tensor, ``[bytes]``, at an address where words may begin."""
    flat = value.contiguous().view(-1).view(torch.uint8)
    return flat.clone() if flat.storage_offset() % 8 else flat
