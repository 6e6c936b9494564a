"""Objects by name, imported when first used; other packages add theirs by entry points."""

import difflib
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib import import_module
from importlib.metadata import entry_points
from typing import Generic, TypeVar, cast

from expunge.errors import ExpungeError

Entry = TypeVar("Entry")


class Registry(Generic[Entry]):
    """A mapping from names to ``"module:object"`` places, loaded lazily.

    Args:
        noun: what the entries are, for messages.
        places: our own entries.
        entry_points: the entry-point group where other packages add theirs.
    """

    def __init__(self, noun: str, places: Mapping[str, str], *, entry_points: str = "") -> None:
        self.noun = noun
        self._own = dict(places)
        self._group = entry_points

    @cached_property
    def places(self) -> Mapping[str, str]:
        """Every name with its place; other packages can't replace our own names."""
        if not self._group:
            return self._own
        found = {point.name: point.value for point in entry_points(group=self._group)}
        return {**found, **self._own}

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.places))

    def get(self, name: str) -> Entry:
        """Import the object called ``name``.

        Raises:
            ExpungeError: there is none; the message lists similar names.
        """
        if name not in self.places:
            near = difflib.get_close_matches(name, self.places, n=3, cutoff=0.4) or list(self)
            raise ExpungeError(f"unknown {self.noun} {name!r}; did you mean {', '.join(near)}?")
        module, _, attribute = self.places[name].partition(":")
        return cast(Entry, getattr(import_module(module), attribute))
