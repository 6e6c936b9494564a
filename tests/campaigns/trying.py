"""Running inputs through the command line in this process, and counting what goes wrong."""

import faulthandler
import io
import os
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from hypothesis import HealthCheck, Phase, given, seed, settings

from campaigns.inputs import Input, inputs
from campaigns.world import World, listing
from expunge.cli import main
from expunge.evaluation.bench import Row, running

LIMIT = 20
"""Seconds that one input may take."""
FAULTS = ("tracebacks", "silent passes", "hangs", "files outside")


class Hang(BaseException):
    """An input took too long."""


@dataclass
class Tally:
    """What was tried, and what went wrong."""

    codes: Counter[int] = field(default_factory=Counter)
    faults: dict[str, list[str]] = field(default_factory=lambda: {name: [] for name in FAULTS})

    def __str__(self) -> str:
        counts = ", ".join(f"{len(found)} {name}" for name, found in self.faults.items())
        ended = ", ".join(f"{count} with {code}" for code, count in sorted(self.codes.items()))
        return f"{sum(self.codes.values())} inputs ({ended}): {counts}"


def campaign(count: int, start: int, root: Path) -> Tally:
    """Try ``count`` inputs; each runs in a folder of its own below ``root``."""
    tally, world = Tally(), World.made(root / "world")
    faults = root / "faults"
    faults.mkdir()

    @seed(start)
    @settings(max_examples=count, deadline=None, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(inputs(world))
    def each(item: Input) -> None:
        _try(item, root, tally)

    with patch.object(tempfile, "tempdir", str(faults)), _quick_bench():
        each()
    return tally


def _try(item: Input, root: Path, tally: Tally) -> None:
    case = root / "cases" / "case"
    shutil.rmtree(root / "cases", ignore_errors=True)
    case.mkdir(parents=True)
    for name, content in item.files.items():
        (case / name).parent.mkdir(parents=True, exist_ok=True)
        (case / name).write_bytes(content)
    before = listing(root) - listing(case)
    code, printed = _run(item, case)
    tally.codes[code] += 1
    fault = next(iter((root / "faults").iterdir()), None)
    told = f"{item.about}: {item.arguments}: {printed[-600:]}"
    if code not in (0, 2) or "Traceback" in printed or fault:
        text = fault.read_text()[-500:] if fault else ""
        tally.faults["hangs" if code == 99 else "tracebacks"].append(f"{told}\n{text}")
        if fault:
            fault.unlink()
    if code == 0 and (item.refused or not _as_expected(item, case)):
        tally.faults["silent passes"].append(told)
    if code == 2 and not printed.strip().splitlines()[-1].startswith("error: "):
        tally.faults["tracebacks"].append(f"no line that says error: {told}")
    if outside := listing(root) - listing(case) - before:
        tally.faults["files outside"].append(f"{told}: {outside}")


def _as_expected(item: Input, case: Path) -> bool:
    return all(
        (case / name).is_file() and (case / name).read_bytes() == content
        for name, content in item.expected.items()
    )


def _run(item: Input, case: Path) -> tuple[int, str]:
    """The exit code, 99 after a hang and 98 after an exception, and what was printed."""
    printed, here = io.StringIO(), Path.cwd()
    os.chdir(case)
    faulthandler.dump_traceback_later(6 * LIMIT, exit=True, file=sys.__stderr__)
    try:
        with redirect_stdout(printed), redirect_stderr(printed), _limited():
            return main(list(item.arguments)), printed.getvalue()
    except Hang:
        return 99, printed.getvalue()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return 98, f"{printed.getvalue()} raised {type(error).__name__}: {error}"
    finally:
        faulthandler.cancel_dump_traceback_later()
        os.chdir(here)


@contextmanager
def _limited() -> Iterator[None]:
    def ended(number: int, frame: object) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, ended)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@contextmanager
def _quick_bench() -> Iterator[None]:
    """A bench that writes what it would, but draws and erases nothing."""

    def work(*asked: Any) -> Row:
        *_, cell = asked
        return Row(**cell._asdict(), concepts=1, refused="a campaign", versions={"a": "1"})

    with patch.object(running, "_work", work), patch.object(running, "_draw_base", lambda *_: None):
        yield
