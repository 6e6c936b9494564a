"""``expunge attack``: does what was erased come back?"""

from functools import reduce
from itertools import product
from operator import add
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console
from rich.table import Table

from expunge.attacks import configured
from expunge.cli import resumable
from expunge.cli.audit import USUAL_SUITE, SuiteOptions
from expunge.cli.drawing import USUAL_SAMPLER, SamplerOptions
from expunge.cli.options import NamedConcepts
from expunge.concepts import Concept
from expunge.detectors.critic import critic as critic_called
from expunge.edits.edit import Edit
from expunge.evaluation.evaluate import question
from expunge.evaluation.red_team import (
    Attacked,
    Budget,
    Counted,
    RedTeam,
    Transfer,
    attacked,
    transferred,
)
from expunge.files import check_output
from expunge.models import load
from expunge.progress import shown
from expunge.spelling import distinct


class AttackedConcepts(NamedConcepts):
    """What is attacked; by default what the edits erase."""

    concept: tuple[str, ...] = ()
    """What should be gone, e.g. "santa claus"."""
    keep: tuple[str, ...] = ()
    """What pictures could show instead, for attacks that tell the concept from other things."""
    policy: Path | None = None
    """YAML file with the entries erase and keep, instead of concepts named by options."""


NO_CONCEPTS = AttackedConcepts()
USUAL = ("closed-form", "rows")
WITH_CRITIC = ("end-to-end", "evade")


def attack(
    model: str,
    /,
    *,
    concepts: Annotated[AttackedConcepts, Parameter(name="*")] = NO_CONCEPTS,
    edit: tuple[Path, ...] = (),
    attack: tuple[str, ...] = (),
    onto: tuple[Path, ...] = (),
    budget: Annotated[tuple[int, ...], Parameter(validator=Number(gte=1))] = (100, 400),
    pictures: Annotated[int, Parameter(validator=Number(gte=1, lte=10_000))] = 21,
    critic: str = "",
    asked: Annotated[SuiteOptions, Parameter(name="*")] = USUAL_SUITE,
    sampler: SamplerOptions = USUAL_SAMPLER,
    seed: int = 0,
    output: Path = Path("runs/attack"),
) -> None:
    """Attack an edited model, and count what comes back, beside the base and a control.

    The base must give the concept up to an attack that is worth anything. The control is drawn
    from where the search began. The folder gets attacks.json, what was found, and the pictures.
    An attack that was stopped goes on with the same command.

    Parameters
    ----------
    model:
        The base: "emoji", a folder, or a Hugging Face id.
    edit:
        An edit file to attack; several are added up. Without any, the model is attacked as it is.
    attack:
        An attack of "expunge attacks"; repeat it for more. By default closed-form and rows, and if
        there is a critic, end-to-end and evade.
    onto:
        The edit file of another model, which is attacked too; what is found on each model is then
        tried on all of them. Repeat it for more.
    budget:
        Calls of the denoiser for each picture and attack; repeat it for more. A ranking by one
        budget is not to be trusted.
    pictures:
        How many are attacked.
    critic:
        An image-text model for attacks end to end, e.g. clip:FOLDER. The bundled model has its own.
    seed:
        Decides all draws.
    output:
        Folder for the results.
    """
    named = [configured(name) for name in attack]
    whole = reduce(add, map(Edit.load, edit)) if edit else None
    edited = {" + ".join(map(str, edit)): whole} if whole else {}
    models = {"base": None, **edited, **{str(path): Edit.load(path) for path in onto}}
    check_output(output, folder=True)
    subject = load(model)
    wanted, arguments = _concepts(concepts, whole), asked.arguments(subject)
    called = critic or ("emoji" if subject.bundled else "")
    fitting = critic_called(called) if called else None
    usual = (*USUAL, *(WITH_CRITIC if fitting else ()))
    chosen = named or [configured(name) for name in usual]
    suite, options = arguments.pop("suite"), {**arguments, "sampler": sampler}
    known = subject.fingerprint()
    rows: list[Attacked] = []
    crossed: list[Transfer] = []
    with resumable(f"what was found so far in {output}"), shown():
        for concept, calls in product(wanted, budget):
            given: dict[str, Any] = {
                "question": question(suite, [concept], **options),
                "attacks": chosen,
                "folder": output,
                "budget": Budget(pictures, calls, seed),
                "critic": fitting,
                "fingerprint": known,
                "keep_pictures": concept.kind != "unsafe",
            }
            if onto:
                crossed.append(transferred(subject, models, **given))
            rows += [attacked(subject, one, **given) for one in models.values()]
    written = RedTeam(models=tuple(rows), transfers=tuple(crossed)).save(output)
    console = Console(highlight=False, markup=False)
    for row in rows:
        console.print(table(row))
    for one in crossed:
        console.print(matrix(one))
    console.print(f"written: {written}")


def _concepts(named: AttackedConcepts, edit: Edit | None) -> tuple[Concept, ...]:
    """What is attacked: what is named, or else what the edit erases."""
    if edit and not (named.concept or named.policy):
        return edit.concepts
    policy = named.to_policy()
    return tuple(
        one.model_copy(update={"keep": distinct((*one.keep, *policy.keep))}) for one in policy.erase
    )


def table(found: Attacked) -> Table:
    """What came back from one model."""
    title = f"{found.summary}; {found.budget} calls a picture"
    shown = ["attack", "comes back (95 %)", "control (95 %)", "calls"]
    if any(one.amounts for one in found.attacks):
        shown.append("still right (95 %)")
    lines = Table(*shown, title=title, title_justify="left")
    lines.add_row("its name", _said(found.by_name))
    for one in found.attacks:
        if one.refused:
            lines.add_row(one.attack, "can't be tried")
            continue
        cells = [_said(one.success), _said(one.control), f"{one.calls:,}"]
        lines.add_row(one.attack, *cells, *([_said(one.kept)] if one.kept else []))
        for at in one.amounts:
            name = f"  {at.amount:g} {one.unit}"
            lines.add_row(name, _said(at.success), "", "", _said(at.kept))
    lines.add_row("any of these", _said(found.worst))
    return lines


def matrix(found: Transfer) -> Table:
    """What was found on each model, tried on all."""
    title = f"{found.concept}: tried on other models; {found.budget} calls a picture"
    lines = Table("attack", "found on", *found.models, title=title, title_justify="left")
    by_row: dict[tuple[str, str], list[str]] = {}
    for one in found.crossings:
        row = by_row.setdefault((one.attack, one.found_on), [])
        row.append("can't be tried" if one.refused else _said(one.success))
    for (attack, here), cells in by_row.items():
        lines.add_row(attack, here, *cells)
    return lines


def _said(counted: Counted | None) -> str:
    """E.g. ``7 of 7 (65–100 %)``."""
    if counted is None:
        return ""
    low, high = counted.rate.interval
    return f"{counted.rate.successes} of {counted.rate.n} ({100 * low:.0f}–{100 * high:.0f} %)"
