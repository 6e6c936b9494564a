"""What a model never sees: objects and styles that leave the catalogue before any stage reads it.

The work folder remembers them, so that no two stages of one model can disagree. The judges and the
tokenizer know everything all the same: they measure and read what the model doesn't know.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from expunge.models.emoji.vocabulary import Catalog, EmojiObject, catalog
from expunge.spelling import names

RECORD = "recipe.json"
TRAINED = ("autoencoder", "text_encoder", "unet", "decoder", "pairs")


def _check(noun: str, asked: frozenset[str], known: list[str]) -> None:
    if unknown := sorted(asked - set(known)):
        raise SystemExit(f"no {noun} is called {', '.join(unknown)}; there are {', '.join(known)}")
    if asked == set(known):
        raise SystemExit(f"every {noun} is left out: nothing would be left to train on")


@dataclass(frozen=True)
class LeftOut:
    """The names of objects and styles that no picture shows and no caption says."""

    objects: frozenset[str] = frozenset()
    styles: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        everything = catalog()
        _check("object", self.objects, [entry.name for entry in everything.objects])
        _check("style", self.styles, [style.name for style in everything.styles])

    def __bool__(self) -> bool:
        return bool(self.objects or self.styles)

    def __str__(self) -> str:
        return ", ".join(sorted(self.objects) + sorted(self.styles)) or "nothing"

    @classmethod
    def read(cls, folder: Path) -> LeftOut:
        """What the record in this folder says; without one, nothing is left out."""
        if not (folder / RECORD).exists():
            return cls()
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return cls(frozenset(record["without"]), frozenset(record["without_style"]))

    def record(self) -> dict[str, list[str]]:
        return {"without": sorted(self.objects), "without_style": sorted(self.styles)}

    @property
    def kept_objects(self) -> list[int]:
        """The numbers, in the whole catalogue, of the objects that stay."""
        return [i for i, entry in enumerate(catalog().objects) if entry.name not in self.objects]

    @property
    def kept_styles(self) -> list[int]:
        return [i for i, style in enumerate(catalog().styles) if style.name not in self.styles]

    def catalog(self) -> Catalog:
        """The catalogue of what stays, in its order, without a wording that names the rest."""
        everything = catalog()
        return Catalog(
            objects=tuple(self._silent(everything.objects[i]) for i in self.kept_objects),
            styles=tuple(everything.styles[i] for i in self.kept_styles),
            backgrounds=everything.backgrounds,
            templates=everything.templates,
        )

    def _silent(self, entry: EmojiObject) -> EmojiObject:
        """An object without the wordings ("santa's wife") that name what is left out."""
        words = [word for name in self.objects for word in catalog().object(name).wordings]
        words.extend(self.styles)

        def silent(wordings: Iterable[str]) -> tuple[str, ...]:
            return tuple(wording for wording in wordings if not names(wording, words, plural=True))

        neighbours = tuple(name for name in entry.neighbours if name not in self.objects)
        return entry.model_copy(
            update={
                "synonyms": silent(entry.synonyms),
                "implicit": silent(entry.implicit),
                "neighbours": neighbours,
            }
        )


NOTHING = LeftOut()


def remembered(work: Path, asked: LeftOut) -> LeftOut:
    """What the models of this folder leave out: what is asked for must be what was begun with."""
    begun = any((work / name / "checkpoint.pt").exists() for name in TRAINED)
    known = LeftOut.read(work)
    if asked and asked != known and (known or begun):
        raise SystemExit(
            f"the models in {work} leave out {known}, and now {asked} was asked for: "
            "give another --work folder"
        )
    return asked or known
