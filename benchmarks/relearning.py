"""How soon Santa Claus comes back when the edited model is trained further.

    python benchmarks/relearning.py [--methods uce esd] [--steps 0 50 100 200 300] [--each 28]
                                    [--role all] [--lr 1e-5] [--output runs/relearning]
                                    [--model emoji]

Erases Santa Claus from the bundled model with each method, in its preset, and trains the edited
model on pictures that the unedited model drew: of Santa Claus, of what is most like him, of other
things. At each point Santa Claus is drawn, with other seeds, and so are other things, and the
judge counts both. One record a method is kept as JSON; what is there isn't measured again.
"""

import argparse
from collections.abc import Iterable, Iterator
from itertools import cycle, islice
from pathlib import Path

from PIL import Image

from expunge import Concept, Model, erase
from expunge.evaluation.bench import presets
from expunge.evaluation.fine_tuning import Captioned, FineTuning
from expunge.evaluation.recognition import recogniser
from expunge.evaluation.relearning import Relearning, relearning
from expunge.files import digest, write_text
from expunge.generation import ImageRequest, Sampler, sample
from expunge.models.emoji import catalog
from expunge.seeding import derive
from expunge.statistics.rates import Rate
from models import model_of

SANTA = Concept(target="santa claus", synonyms=("santa",), kind="character", anchor="robot")


def asked(names: Iterable[str], count: int, purpose: str) -> list[ImageRequest]:
    """``count`` pictures of things in turn, in styles in turn, each with noise of its own."""
    styles = [style.name for style in catalog().styles]
    pairs = ((name, style) for name, style in zip(cycle(names), _turned(styles), strict=False))
    return [
        ImageRequest(
            case_number=f"{purpose}-{number}",
            prompt=f"{name}, {style} style",
            seed=derive(0, purpose, name, style, number) % 2**32,
        )
        for number, (name, style) in enumerate(islice(pairs, count))
    ]


def _turned(styles: list[str]) -> Iterator[str]:
    """The styles round and round, one further each time, so that no thing keeps to one style."""
    for start in cycle(range(len(styles))):
        yield from styles[start:] + styles[:start]


def drawn(model: Model, requests: list[ImageRequest]) -> list[Captioned]:
    return [
        Captioned(Image.fromarray(pixels.numpy()), request.prompt)
        for request, pixels in sample(model, requests, Sampler())
    ]


def measured(model: Model, method: str, options: argparse.Namespace, path: Path) -> Relearning:
    santa = SANTA.target
    things = [entry.name for entry in catalog().objects]
    near = list(catalog().object(santa).neighbours)
    far = [name for name in things if name not in (santa, *near)]
    kept = asked(far[1::5], options.each, "kept")
    edit = erase(model, presets.policy(SANTA), method, **presets.settings(method, SANTA))
    found = relearning(
        model,
        edit,
        santa,
        asked([santa], options.each, "measured"),
        {
            name: [one for one in kept if one.prompt.startswith(f"{name}, ")]
            for name in {one.prompt.rpartition(", ")[0] for one in kept}
        },
        {
            "the concept": drawn(model, asked([santa], options.each, "learnt")),
            "related": drawn(model, asked(near, options.each, "learnt")),
            "unrelated": drawn(model, asked(far[::5], options.each, "learnt")),
        },
        recogniser("emoji", things),
        steps=options.steps,
        tuning=FineTuning(role=options.role, lr=options.lr),
    )
    write_text(path, found.model_dump_json(indent=1))
    return found


def cell(rate: Rate) -> str:
    low, high = (100 * bound for bound in rate.interval)
    return f"{rate.successes} of {rate.n} ({low:.0f}–{high:.0f} %)"


def table(method: str, found: Relearning) -> Iterator[str]:
    tuning = found.tuning
    yield (
        f"{method}: {tuning.role}, Adam {tuning.lr:g}, {tuning.batch} pictures a step; the base "
        f"draws {cell(found.base)}, of other things {cell(found.base_kept)}"
    )
    for curve in found.curves:
        for point in curve.points:
            loss = "" if point.loss is None else f"  loss {point.loss:.4f}"
            yield (
                f"  {curve.learnt_from:12s} {point.steps:4d} steps  {cell(point.drawn):24s}  "
                f"other things {cell(point.kept)}{loss}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--methods", nargs="+", default=["uce", "esd"])
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 50, 100, 200, 300])
    parser.add_argument("--each", type=int, default=28, help="pictures of each kind")
    parser.add_argument("--role", default="all")
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--output", type=Path, default=Path("runs/relearning"))
    parser.add_argument("--model", default="emoji", help="emoji or pico")
    options = parser.parse_args()
    model = model_of(options.model)
    chosen = [options.steps, options.each, options.role, options.lr, model.fingerprint()]
    for method in options.methods:
        path = options.output / f"{method}-{digest(chosen)[:8]}.json"
        known = path.exists()
        found = (
            Relearning.model_validate_json(path.read_text())
            if known
            else measured(model, method, options, path)
        )
        print("\n".join(table(method, found)), flush=True)


if __name__ == "__main__":
    main()
