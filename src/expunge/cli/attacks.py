"""``expunge attacks``: what can be tried."""

from rich.console import Console
from rich.table import Table

from expunge.attacks import ATTACKS


def attacks() -> None:
    """List the attacks, and what each must know."""
    lines = Table("attack", "what it is", "what it must know")
    for name in ATTACKS:
        kind = ATTACKS.get(name)
        lines.add_row(name, f"{kind.title} ({kind.year})", ", ".join(sorted(kind.knows)))
    Console(highlight=False, markup=False).print(lines)
