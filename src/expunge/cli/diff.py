"""``expunge diff``: how two reports differ, and why."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from expunge.evaluation.records import Report
from expunge.report.diff import diff as compare
from expunge.report.words import cell


def diff(first: Path, second: Path, /, *, everything: bool = False) -> None:
    """Say how the numbers of two reports differ, and what was different in how they were made.

    If a run that was repeated elsewhere has other numbers, a line says which version, seed or
    setting differs.

    Parameters
    ----------
    first:
        Folder of an audit or evaluation, or its report.json.
    second:
        The same for another audit or evaluation.
    everything:
        Also list the numbers that are the same.
    """
    console = Console(highlight=False, markup=False)
    found = compare(Report.load(first), Report.load(second))
    for line in found.asked:
        console.print(f"asked differently: {line}")
    for name in found.only_first:
        console.print(f"only in {first}: {name}")
    for name in found.only_second:
        console.print(f"only in {second}: {name}")
    shown = [change for change in found.changes if everything or not change.same]
    if shown:
        lines = Table("concept", "prompts", "measured", str(first), str(second), "intervals")
        for change in shown:
            before, after = cell(change.before), cell(change.after)
            lines.add_row(
                change.concept,
                change.group,
                change.metric,
                f"{before.value} ({before.interval})\n{before.cases}",
                f"{after.value} ({after.interval})\n{after.cases}",
                "same" if change.same else "apart" if change.apart else "overlap",
            )
        console.print(lines)
    equal = sum(change.same for change in found.changes)
    console.print(f"{equal} of {len(found.changes)} numbers are the same")
