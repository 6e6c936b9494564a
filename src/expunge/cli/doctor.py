"""``expunge doctor``: what an edit would change in a model, and how the model reads your words."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from expunge.cli.options import (
    NO_CONCEPTS,
    ErasedOptions,
    MethodSettings,
    ModelName,
    assignments,
)
from expunge.doctor import Diagnosis, examine
from expunge.doctor.facts import Anatomy, Cost, Harm, Likeness, NetworkSize, Pace, Phrase, Timing
from expunge.edits.edit import Edit
from expunge.errors import ExpungeError
from expunge.methods import configured
from expunge.models import load


def doctor(
    *,
    model: ModelName = "emoji",
    concepts: ErasedOptions = NO_CONCEPTS,
    method: str | None = None,
    setting: MethodSettings = (),
    edit: tuple[Path, ...] = (),
    timed: bool = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Say what an edit would change in a model, and how the model reads your words.

    Nothing is erased or written. Without concepts, only the model is described.

    Parameters
    ----------
    method:
        One of "expunge methods", to be tried; uce by default.
    edit:
        An edit file: say what it does to everyday words. Repeat it for more, each by itself.
    timed:
        Load the whole model, time a pass of its UNet, and without --method try every method that
        needs no training. Otherwise only a method that draws or trains loads more than the text
        encoder.
    as_json:
        Print one JSON object instead of tables.
    """
    named = bool(concepts.policy or concepts.concept)
    if not named and (concepts.described or concepts.keep or method):
        raise ExpungeError(
            "--synonym, --kind, --anchor, --keep and --method need a concept to erase; name it "
            "with --concept WORDS or --policy FILE"
        )
    if setting and not method:
        raise ExpungeError(f"--set {setting[0]}: of which method? Name it with --method")
    wanted = concepts.to_policy() if named else None
    tried = method or ("uce" if named and not timed else None)
    chosen = configured(tried, **assignments(tried, setting)) if tried else None
    edits = [Edit.load(path) for path in edit]
    whole = timed or bool(chosen and chosen.needed - {"text"})
    with Console(stderr=True).status("examining the model ..."):
        found = examine(load(model, whole=whole), wanted, chosen, edits)
    if as_json:
        print(found.model_dump_json(indent=2))
    else:
        _show(Console(highlight=False), found)


def _show(console: Console, found: Diagnosis) -> None:
    for line in _model(found.model):
        console.print(line)
    console.print()
    console.print(_sizes("network", found.model.networks, found.model.classes))
    console.print()
    console.print(_sizes("role in the UNet (they overlap)", found.model.roles, {}))
    console.print(f"\n{_pace(found.pace)}")
    if found.phrases:
        console.print("\n[bold]How the model reads your words[/bold]")
        console.print(_phrases(found.phrases, found.model.positions))
        console.print(
            "\n[bold]How near they are to their anchors[/bold]\n"
            "Cosine of the embeddings as bare prompts; in brackets that of unrelated words."
        )
        console.print(_likenesses(found.likenesses))
        console.print("\n[bold]Warnings[/bold]")
        for warning in found.warnings:
            console.print(f"- {escape(warning.message)}")
        if not found.warnings:
            console.print("none")
        console.print("\n[bold]What a method would change[/bold]")
        if found.costs:
            console.print(_costs(found.costs))
        for cost in found.costs:
            console.print(f"{cost.method}: the time is {cost.how}")
        for refusal in found.refusals:
            console.print(f"{refusal.method}: {escape(refusal.reason)}")
    for harm in found.harms:
        said = escape(harm.summary)
        console.print(f"\n[bold]What this edit does to everyday words[/bold]: {said}")
        for line in _harm(harm):
            console.print(line)


def _harm(harm: Harm) -> Iterator[str]:
    found = harm.damage
    if found is None:
        yield f"not told: {escape(harm.reason)}"
        return
    yield (
        f"spread of the keys and values of {found.words} nouns: {found.spread:.3f} of what it was; "
        f"{100 * found.overlap:.0f} % of their nearest are the same"
    )
    moved = ", ".join(f"{escape(one.word)} {100 * one.share:.1f} %" for one in found.moved)
    yield f"moved most: {moved}"


def _model(model: Anatomy) -> Iterator[str]:
    channels, rows, columns = model.latent_shape
    height, width = model.image_size
    yield f"[bold]{escape(model.name)}[/bold]: {model.dtype} on {model.device}"
    yield (
        f"a prompt is {model.positions} rows of width {model.text_width} (start, "
        f"{model.positions - 2} pieces, end)"
    )
    yield (
        f"latents are {channels}×{rows}×{columns} (channels, height, width), pictures "
        f"{height}×{width} pixels"
    )
    if model.no_drawing:
        yield f"[bold]No drawing:[/bold] {escape(model.no_drawing)}"
    yield ", ".join(f"{name} {version}" for name, version in model.versions.items())


def _sizes(heading: str, parts: tuple[NetworkSize, ...], classes: dict[str, str]) -> Table:
    table = _table(heading, *(["class"] if classes else []), "tensors#", "parameters#", "MB#")
    for part in parts:
        kind = (classes[part.name],) if classes else ()
        numbers = (str(part.tensors), f"{part.parameters:,}", _megabytes(part.bytes))
        table.add_row(part.name, *kind, *numbers)
    return table


def _phrases(phrases: tuple[Phrase, ...], positions: int) -> Table:
    table = _table("phrase", "is", "pieces", "number#", f"last row of {positions}#")
    for phrase in phrases:
        shown = escape(phrase.text) or '"" (the empty prompt)'
        cut = f" ({phrase.cut_off} cut off)" if phrase.cut_off else ""
        number = f"{len(phrase.pieces)}{cut}"
        table.add_row(shown, phrase.role, escape(_split(phrase)), number, str(phrase.last_row))
    return table


def _split(phrase: Phrase) -> str:
    """Words set apart by spaces, and their pieces by ``|``."""
    words: dict[int, list[str]] = {}
    for piece in phrase.pieces:
        words.setdefault(piece.word, []).append(piece.text)
    return " ".join("|".join(pieces) for pieces in words.values())


def _likenesses(likenesses: tuple[Likeness, ...]) -> Table:
    table = _table("phrase", "anchor", "at the last piece", "at the end of the text")
    for each in likenesses:
        table.add_row(
            escape(each.phrase),
            escape(each.anchor) or '""',
            f"{each.last_piece:.2f} ({each.unrelated_last_piece:.2f})",
            f"{each.end:.2f} ({each.unrelated_end:.2f})",
        )
    return table


def _costs(costs: tuple[Cost, ...]) -> Table:
    table = _table("method", "changes", "rows#", "edit, MB#", "time#", "peak memory, MB#")
    for cost in costs:
        table.add_row(
            cost.method,
            f"{cost.tensors} of {cost.role_tensors} tensors of {cost.role} "
            f"({cost.parameters:,} parameters)",
            "all" if cost.rows is None else str(cost.rows),
            _megabytes(cost.edit_bytes),
            f"{'about ' if cost.estimated else ''}{_duration(cost.seconds)}",
            f"{_megabytes(cost.peak_bytes)} ({cost.memory})",
        )
    return table


def _table(*columns: str) -> Table:
    """A table without lines; columns whose name ends in ``#`` hold numbers."""
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column.rstrip("#"), justify="right" if column[-1] == "#" else "left")
    return table


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.2f}"


def _pace(pace: Pace) -> str:
    prompt = f"ne prompt through the text encoder takes {_timing(pace.text_encoder)}"
    if not pace.unet:
        return f"O{prompt}; --timed also times the UNet."
    return f"One UNet pass for one picture takes {_timing(pace.unet)}, o{prompt}."


def _timing(timing: Timing) -> str:
    once = "measured once" if timing.repeats == 1 else f"median of {timing.repeats} runs"
    return f"{_duration(timing.seconds)} ({once})"


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
