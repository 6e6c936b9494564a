"""Every attack on every method, on the bundled model, beside the base.

    python benchmarks/red_team.py [--methods uce cpe] [--things "santa claus"] [--attacks rows]
                                  [--budget 100 400] [--pictures 21] [--folder runs/red-team]
                                  [--transfer]

Edits are made with the presets for this model, as ``expunge bench`` makes them. A row counts the
pictures that come back: by name, by each attack, and by any of them. The control of each attack is
drawn from where its search began. Attacks on the weights have a row for each amount, beside the
pictures of other things that are still right. With ``--transfer``, what was found on each model is
tried on the others. What is stopped goes on from the folder.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from expunge import Concept, Edit, ExpungeError, Model, erase
from expunge.attacks import ATTACKS, configured
from expunge.detectors.critic import critic
from expunge.evaluation.bench import presets
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
from expunge.files import file_name
from expunge.methods import METHODS
from models import model_of

THINGS = {
    "santa claus": Concept(target="santa claus", kind="character", anchor="robot"),
    "pizza": Concept(target="pizza", anchor="cookie"),
    "ink": Concept(target="ink", kind="style", anchor="noto style"),
}
ATTACKED = ("closed-form", "rows", "end-to-end", "evade")


def edits(
    model: Model, thing: str, methods: Sequence[str], folder: Path
) -> Iterator[tuple[str, Edit | None]]:
    """The base, then an edit by each method, from the folder if it was made before."""
    yield "base", None
    concept = THINGS[thing]
    for method in methods:
        place = folder / "edits" / f"{file_name(method)}-{file_name(thing)}.safetensors"
        if not place.exists():
            settings = presets.settings(method, concept)
            made = erase(model, presets.policy(concept), method, **settings)
            made.save(place)
        yield method, Edit.load(place)


def row(name: str, found: Attacked) -> str:
    cells = [_cell(found.by_name), *(_both(one.success, one.control) for one in found.attacks)]
    return f"| {name} | {' | '.join((*cells, _cell(found.worst)))} |"


def _cell(counted: Counted | None) -> str:
    if counted is None:
        return "–"
    low, high = counted.rate.interval
    return f"{counted.rate.successes} of {counted.rate.n} ({100 * low:.0f}–{100 * high:.0f} %)"


def _both(success: Counted | None, control: Counted | None) -> str:
    if success is None or control is None:
        return "–"
    return f"{_cell(success)}, control {control.rate.successes}"


def amounts(name: str, found: Attacked) -> Iterator[str]:
    """A line for each amount of each attack on the weights."""
    for one in found.attacks:
        for at in one.amounts:
            yield (
                f"{name}, {one.attack} {at.amount:g} {one.unit}: {_cell(at.success)}, other things "
                f"{_cell(at.kept)} (before {_cell(one.kept)})"
            )


def crossings(found: Transfer) -> Iterator[str]:
    """A table whose rows say on which model it was found, and columns where it was tried."""
    yield f"\n| attack | found on | {' | '.join(found.models)} |"
    yield "|---" * (len(found.models) + 2) + "|"
    rows: dict[tuple[str, str], list[str]] = {}
    for one in found.crossings:
        rows.setdefault((one.attack, one.found_on), []).append(_both(one.success, one.control))
    for (attack, here), cells in rows.items():
        yield f"| {attack} | {here} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", choices=[*METHODS], default=["uce"], metavar="NAME")
    parser.add_argument("--things", nargs="+", choices=THINGS, default=[*THINGS])
    parser.add_argument("--attacks", nargs="+", choices=[*ATTACKS], default=[*ATTACKED])
    parser.add_argument("--budget", nargs="+", type=int, default=[100, 400])
    parser.add_argument("--pictures", type=int, default=21)
    parser.add_argument("--transfer", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="emoji", help="emoji or pico")
    parser.add_argument("--folder", type=Path, default=Path("runs/red-team"))
    options = parser.parse_args()
    model, attacks = model_of(options.model), [configured(name) for name in options.attacks]
    fingerprint, found, crossed = model.fingerprint(), [], []
    for thing in options.things:
        [concept] = presets.policy(THINGS[thing]).erase
        asked = question("emoji", [concept])
        for calls in options.budget:
            print(f"\n{thing}, {calls} calls a picture\n")
            print(f"| | by name | {' | '.join(options.attacks)} | any |")
            print("|---" * (len(attacks) + 3) + "|", flush=True)
            given = {
                "question": asked,
                "attacks": attacks,
                "folder": options.folder,
                "budget": Budget(options.pictures, calls, options.seed),
                "critic": critic("emoji"),
                "fingerprint": fingerprint,
            }
            lines: list[str] = []
            models = dict(edits(model, thing, options.methods, options.folder))
            for name, edit in models.items():
                try:
                    one = attacked(model, edit, **given)
                except ExpungeError as error:
                    print(f"| {name} | {error} |", flush=True)
                    continue
                found.append(one)
                lines += amounts(name, one)
                print(row(name, one), flush=True)
            print("\n".join(lines), flush=True)
            if options.transfer:
                crossed.append(transferred(model, models, **given))
                print("\n".join(crossings(crossed[-1])), flush=True)
    RedTeam(models=tuple(found), transfers=tuple(crossed)).save(options.folder)


if __name__ == "__main__":
    main()
