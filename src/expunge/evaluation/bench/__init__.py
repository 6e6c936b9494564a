"""Methods x tasks x seeds on the bundled model, in one table.

A cell of the table is one edit: made, timed, and measured with a suite. Each finished cell is a
file, so a stopped run can continue, and several runs can fill one folder. Edits are then attacked,
and methods ranked by what survives.
"""

from expunge.evaluation.bench.attacking import BASE, RETAIN_ONLY, AttackRow, attack
from expunge.evaluation.bench.leaderboard import Board, Standing, board
from expunge.evaluation.bench.plan import AttackPlan, Bench, Cell, Task
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
    "BASE",
    "COLUMNS",
    "ERASED",
    "RETAINED",
    "RETAIN_ONLY",
    "TABLE",
    "AttackPlan",
    "AttackRow",
    "Bench",
    "Board",
    "Cell",
    "Line",
    "Row",
    "Standing",
    "Task",
    "attack",
    "board",
    "lines",
    "run",
    "write_table",
]
