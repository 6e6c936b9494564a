"""Attacks on the weights, counted: what each amount brings back, and what it breaks."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from expunge.attacks.tampering import Tampering
from expunge.errors import Unsupported
from expunge.evaluation.red_team.drawing import Drawing
from expunge.evaluation.red_team.records import Amount, AttackRecord, Counted
from expunge.files import write_json


def tampered(
    attack: Tampering,
    settings: dict[str, Any],
    calls: int,
    drawing: Drawing,
    by_name: Counted,
    done: Path,
) -> AttackRecord:
    """The record of an attack, which is also written to ``done``.

    Its control is what the model draws before it, ``by_name``; ``kept`` is the same for other
    things. A picture comes back if any amount brings it back.
    """
    spent: list[int] = []
    try:
        kept = drawing.kept(f"{done.stem}-kept")
        amounts = tuple(_amounts(attack, calls, drawing, done, spent))
    except Unsupported as error:
        return AttackRecord(attack=attack.name, settings=settings, refused=str(error))
    columns = zip(*(one.success.outcomes for one in amounts), strict=True)
    record = AttackRecord(
        attack=attack.name,
        settings=settings,
        success=Counted.of([any(column) for column in columns]),
        control=by_name,
        calls=sum(spent),
        unit=attack.unit,
        amounts=amounts,
        kept=kept,
    )
    write_json(done, record.model_dump(mode="json"))
    return record


def _amounts(
    attack: Tampering, calls: int, drawing: Drawing, done: Path, spent: list[int]
) -> Iterator[Amount]:
    target, key = drawing.target, done.stem
    prompts = dict(enumerate(target.prompts))
    for one in attack.tampered(target, calls, drawing.seed, done.parent / key, key):
        changed = drawing.on(replace(target, edit=None, weights=one.weights))
        spent.append(one.calls)
        name = f"{key}-{one.amount:g}"
        yield Amount(
            amount=one.amount,
            success=changed(name, prompts),
            kept=changed.kept(f"{name}-kept"),
        )
