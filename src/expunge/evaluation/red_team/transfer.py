"""What was found on one model, tried on others: does a prompt bring the concept back everywhere?"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path

import torch

from expunge.attacks.base import Attack
from expunge.attacks.probes import Probe
from expunge.attacks.rows import check_rows
from expunge.attacks.running import Finding
from expunge.attacks.tampering import Tampering
from expunge.detectors.critic import Critic
from expunge.edits.edit import Edit
from expunge.errors import ExpungeError, Unsupported
from expunge.evaluation.evaluate import Question
from expunge.evaluation.red_team.attacking import (
    USUAL,
    Budget,
    Prepared,
    findings,
    named,
    prepared,
    read_record,
    recorded,
)
from expunge.evaluation.red_team.records import Counted, Crossing, Transfer
from expunge.files import write_json
from expunge.models import Model


def transferred(
    model: Model,
    edits: Mapping[str, Edit | None],
    question: Question,
    attacks: Sequence[Attack],
    folder: Path,
    *,
    budget: Budget = USUAL,
    critic: Critic | None = None,
    fingerprint: str | None = None,
    keep_pictures: bool = True,
) -> Transfer:
    """Attack each model, and try what is found on all of them, with the same noise.

    Args:
        model: the base, without any edit applied; it is unchanged afterwards.
        edits: what is done to each of the models, by a name for it; ``None`` is the base.
        question, attacks, folder, budget, critic, fingerprint, keep_pictures: as for
            ``attacked``, whose results in the same folder aren't computed again. Attacks that find
            nothing that could be sent, which are probes and those on weights, are left out.

    Raises:
        ExpungeError: there are less than two different models, or no attack is left; and whatever
            ``attacked`` raises.
    """
    ids = tuple(edit.id if edit else "" for edit in edits.values())
    if len(set(ids)) < max(2, len(ids)):
        raise ExpungeError("give two or more different models, to try on one what another gave")
    searching = [one for one in attacks if not isinstance(one, Probe | Tampering)]
    if not searching:
        raise ExpungeError("these attacks find no prompt or rows that could be tried elsewhere")
    prepare = partial(
        prepared, model, question=question, attacks=searching, folder=folder, base=None,
        budget=budget, critic=critic, fingerprint=fingerprint, keep_pictures=keep_pictures,
    )  # fmt: skip
    ready = {name: prepare(edit) for name, edit in edits.items()}
    with model.frozen(), torch.inference_mode(False), torch.enable_grad():
        crossings = tuple(
            _crossed(attack, ready, here, there, budget)
            for attack, here, there in product(searching, ready, ready)
        )
    return Transfer(
        concept=question.plans[0].concept.target,
        budget=budget.calls,
        seed=budget.seed,
        models=tuple(edits),
        edits=ids,
        crossings=crossings,
    )


def _crossed(
    attack: Attack, ready: Mapping[str, Prepared], here: str, there: str, budget: Budget
) -> Crossing:
    """What was found on the model called ``here``, tried on ``there``; read if it was counted."""
    source, other = ready[here], ready[there]
    crossing = partial(Crossing, attack=attack.name, found_on=here, tried_on=there)
    own = recorded(attack, source, budget)
    if here == there or own.refused:
        return crossing(success=own.success, control=own.control, refused=own.refused)
    name, _ = named(attack, source, budget)
    done = other.place / f"{name}-from-{source.place.name}.json"
    if not done.exists():
        try:
            success, control = _tried(findings(attack, source, budget), other, done.stem)
        except Unsupported as error:
            return crossing(refused=str(error))
        write_json(done, crossing(success=success, control=control).model_dump(mode="json"))
    drawn = read_record(Crossing, done)
    return crossing(success=drawn.success, control=drawn.control)


def _tried(found: Sequence[Finding], other: Prepared, name: str) -> tuple[Counted, Counted]:
    """Pictures that a model draws from what was found on another, and from where that began.

    Raises:
        Unsupported: it draws no rows, and rows were found.
    """
    if any(one.found.ids is None for one in found):
        check_rows(other.target)
    asked = other.drawing.asked
    sent = {at: asked(one.found) for one in found for at in one.pictures}
    begun = {at: asked(one.control) for one in found for at in one.pictures}
    return other.drawing(name, sent), other.drawing(f"{name}-control", begun)
