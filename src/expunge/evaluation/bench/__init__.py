"""Methods x tasks x seeds on the bundled model, in one table.

A cell of the table is one edit: made, timed, and measured with a suite. Each finished cell is a
file, so a stopped run can continue, and several runs can fill one folder.
"""

from expunge.evaluation.bench.plan import Bench, Cell, Task
from expunge.evaluation.bench.running import run
from expunge.evaluation.bench.table import (
    COLUMNS,
    ERASED,
    RETAINED,
    TABLE,
    Line,
    Row,
    lines,
    write_table,
)

__all__ = [
    "COLUMNS",
    "ERASED",
    "RETAINED",
    "TABLE",
    "Bench",
    "Cell",
    "Line",
    "Row",
    "Task",
    "lines",
    "run",
    "write_table",
]
