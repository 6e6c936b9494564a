"""Running searches within a budget; a search that was stopped goes on, with the same result."""

from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import NamedTuple

from expunge.attacks.base import Attack, Search
from expunge.attacks.found import Found
from expunge.attacks.target import Target
from expunge.errors import ExpungeError
from expunge.progress import track
from expunge.tensors import read, write

ENTRY = "expunge"
SAVED_EVERY = 20.0
"""Seconds between two states of a search on disk."""


class Finding(NamedTuple):
    """What one search found for some pictures."""

    pictures: tuple[int, ...]
    found: Found
    control: Found
    """Where the search began."""
    calls: int
    """Of the denoiser, by pictures; those with gradients count three times."""


def run(
    attack: Attack, target: Target, budget: int, seed: int, folder: Path, key: str
) -> Iterator[Finding]:
    """Search for each group of pictures.

    Args:
        attack: what searches.
        target: what is attacked; no edit is applied to its model.
        budget: calls of the denoiser for each picture, at least 1. A step that was begun is
            finished.
        seed: decides all draws.
        folder: where states and findings are kept.
        key: tells this search from others, in what is kept there.

    Raises:
        Unsupported: it is an attack on something that the target doesn't have.
        ExpungeError: it lacks what it needs to know, or the folder holds other searches' findings.
    """
    attack.check(target)
    groups = attack.groups(len(target.prompts))
    for number, pictures in enumerate(track(groups, attack.name, total=len(groups))):
        place, own = folder / f"{number}.safetensors", f"{key}-{number}"
        with attack.view(target):
            search = attack.begin(target, pictures, seed)
            control = search.found()
            known = Found.load(place, own)
            if known is None:
                calls = _searched(search, target, budget * len(pictures), place, own)
                known = search.found(), calls
                known[0].save(place, own, calls)
                _state(place).unlink(missing_ok=True)
        yield Finding(tuple(pictures), known[0], control, known[1])


def _state(place: Path) -> Path:
    return place.with_suffix(".state.safetensors")


def _searched(search: Search, target: Target, calls: int, place: Path, key: str) -> int:
    """Go on until the budget is spent, and say how much was."""
    spent = _resumed(search, _state(place), key)
    before, saved = target.meter.calls - spent, monotonic()
    while not search.over and target.meter.calls - before < calls:
        search.step()
        if monotonic() - saved > SAVED_EVERY:
            record = {"key": key, "calls": target.meter.calls - before}
            write(_state(place), ENTRY, record, dict(search.state))
            saved = monotonic()
    return target.meter.calls - before


def _resumed(search: Search, path: Path, key: str) -> int:
    """Take up a state, if there is one of this search, and say what it had spent."""
    if not path.exists():
        return 0
    record, state = read(path, ENTRY, "state of a search")
    if record.get("key") != key:
        return 0
    try:
        search.restore(state)
    except (KeyError, ValueError, RuntimeError) as error:
        raise ExpungeError(f"{path}: damaged ({error}); delete it") from None
    return int(record["calls"])
