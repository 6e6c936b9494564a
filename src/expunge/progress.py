"""Progress bars with the time left, shown only inside ``with shown():``."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Tracked = TypeVar("Tracked")

_display: ContextVar[Progress | None] = ContextVar("expunge_progress", default=None)


@contextmanager
def shown(console: Console | None = None) -> Iterator[None]:
    """Draw the bars of every ``track`` inside this block (to standard error by default)."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    display = Progress(*columns, console=console or Console(stderr=True))
    token = _display.set(display)
    try:
        yield
    finally:
        _display.reset(token)
        if display.tasks:  # without a bar it would print an empty line
            display.stop()


def track(
    items: Iterable[Tracked],
    description: str,
    *,
    total: int,
    start: int = 0,
) -> Iterator[Tracked]:
    """Yield ``items`` and advance a bar after each; ``start`` counts what an earlier run did."""
    display = _display.get()
    if display is None:
        yield from items
        return
    task = display.add_task(description, total=total, completed=start)
    display.start()
    for item in items:
        yield item
        display.advance(task)
