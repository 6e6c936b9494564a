"""What attacks bring back: searched for, drawn, judged, and counted beside controls."""

from expunge.evaluation.red_team.attacking import Budget, attacked
from expunge.evaluation.red_team.records import (
    FILE,
    Attacked,
    AttackRecord,
    Counted,
    RedTeam,
    Transfer,
)
from expunge.evaluation.red_team.transfer import transferred

__all__ = [
    "FILE",
    "AttackRecord",
    "Attacked",
    "Budget",
    "Counted",
    "RedTeam",
    "Transfer",
    "attacked",
    "transferred",
]
