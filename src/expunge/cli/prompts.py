"""``expunge prompts``: the prompt sets that the field uses, and whether a file is one of them."""

from pathlib import Path

from rich.console import Console

from expunge.prompts.published import (
    Loaded,
    PublishedSet,
    published,
    published_set,
    published_sets,
)


def prompts(name: str | None = None, file: Path | None = None, /) -> None:
    """List the prompt sets that the field uses, show one, or check your copy of one.

    Other people's prompts aren't shipped, and no prompt is printed.

    Parameters
    ----------
    name:
        The prompt set, e.g. i2p; by default all of them.
    file:
        Your copy of it; for a set made from templates, a YAML file of names.
    """
    console = Console(highlight=False, soft_wrap=True, markup=False)
    if name is None:
        for record in published_sets().values():
            _head(console, record)
        console.print(
            "\nOne of them: expunge prompts NAME. Your copy of it: expunge prompts NAME FILE"
        )
        return
    record = published_set(name)
    loaded = published(name, file) if file or not record.needs_file else None
    _head(console, record)
    for field, text in _facts(record):
        console.print(f"  {field}: {text}")
    if loaded:
        _check(console, loaded)


def _head(console: Console, record: PublishedSet) -> None:
    sensitive = ", sensitive" if record.sensitive else ""
    console.print(record.name, style="bold", end="")
    console.print(f": {record.title} ({record.rows:,} rows{sensitive})")


def _facts(record: PublishedSet) -> list[tuple[str, str]]:
    columns = (" or ".join((name, *record.aliases.get(name, ()))) for name in record.columns)
    return [
        ("file", record.file or "none, it is made from templates"),
        ("columns", ", ".join(columns)),
        ("licence", record.licence),
        ("source", record.source),
        ("SHA-256", record.sha256 or "not pinned"),
        *(("note", trap) for trap in record.traps),
    ]


def _check(console: Console, loaded: Loaded) -> None:
    sums = {True: "as published", False: "not the published file's", None: "not pinned"}
    rows = "as published" if loaded.rows_match else f"published: {loaded.record.rows:,}"
    console.print(f"\n{loaded.prompts.source}")
    console.print(f"  rows: {loaded.rows:,} ({rows})")
    console.print(f"  dropped by the lexicon: {loaded.prompts.dropped:,}")
    if loaded.prompts.blank:
        console.print(f"  without a prompt: {loaded.prompts.blank:,}")
    console.print(f"  left to draw: {len(loaded.prompts):,}")
    console.print(f"  SHA-256: {loaded.prompts.sha256} ({sums[loaded.sha256_matches]})")
    for note in loaded.notes:
        console.print(f"  note: {note}")
