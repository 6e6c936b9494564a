"""What the bundled model can draw: objects, styles, backgrounds and the caption templates."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from importlib.resources import files
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from expunge.texts import read_yaml

Kind = Literal["object", "animal", "food", "vehicle", "plant", "character", "unsafe"]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EmojiObject(_Entry):
    """One thing the model draws, with every wording it was taught for it."""

    name: str
    kind: Kind
    hexcode: str = Field(pattern=r"^[0-9A-F]{4,5}(-[0-9A-F]{4,5})*$")
    synonyms: tuple[str, ...]
    implicit: tuple[str, ...]
    neighbours: tuple[str, ...]

    @property
    def wordings(self) -> tuple[str, ...]:
        """The name, then the synonyms, then the implicit descriptions."""
        return (self.name, *self.synonyms, *self.implicit)


class EmojiStyle(_Entry):
    """One emoji design: ``name`` is its word in captions, ``iconify`` its set on Iconify."""

    name: str
    iconify: str
    display: str
    licence: str


class EmojiBackground(_Entry):
    """One plain background colour."""

    name: str
    colour: str = Field(pattern=r"^#[0-9A-F]{6}$")

    @property
    def rgb(self) -> tuple[int, int, int]:
        red, green, blue = (int(self.colour[i : i + 2], 16) for i in (1, 3, 5))
        return red, green, blue


class Catalog(_Entry):
    """Everything in the model's vocabulary."""

    objects: tuple[EmojiObject, ...]
    styles: tuple[EmojiStyle, ...]
    backgrounds: tuple[EmojiBackground, ...]
    templates: tuple[str, ...]

    @model_validator(mode="after")
    def _is_consistent(self) -> Catalog:
        names = [entry.name for entry in self.objects]
        wordings = [wording for entry in self.objects for wording in entry.wordings]
        for what, values in (("object", names), ("wording", wordings)):
            if repeated := {value for value in values if values.count(value) > 1}:
                raise ValueError(f"{what} listed twice: {sorted(repeated)}")
        for entry in self.objects:
            if unknown := set(entry.neighbours) - set(names):
                raise ValueError(f"{entry.name}: unknown neighbours {sorted(unknown)}")
        for template in self.templates:
            fields = set(re.findall(r"{(\w*)}", template))
            if "object" not in fields or fields - {"object", "style", "background"}:
                raise ValueError(f"template {template!r} needs {{object}} and no unknown field")
        return self

    def object(self, name: str) -> EmojiObject:
        """The object called ``name``, or a KeyError that says what there is."""
        for entry in self.objects:
            if entry.name == name:
                return entry
        raise KeyError(f"no object {name!r}; there are {[entry.name for entry in self.objects]}")

    def of_kind(self, kind: Kind) -> tuple[EmojiObject, ...]:
        return tuple(entry for entry in self.objects if entry.kind == kind)

    def prompts(
        self, template: str = "{object}, {style} style"
    ) -> Iterator[tuple[str, EmojiObject, EmojiStyle]]:
        """(prompt, object, style) for every object in every style."""
        for entry in self.objects:
            for style in self.styles:
                yield template.format(object=entry.name, style=style.name), entry, style


def paired(template: str) -> str:
    """A caption template for two things, with ``{first}`` and ``{second}`` for ``{object}``."""
    return template.replace("a {object}", "{object}").replace(
        "{object}", "a {first} and a {second}"
    )


@lru_cache(maxsize=1)
def catalog() -> Catalog:
    """The catalogue that ships with the model."""
    return Catalog.model_validate(read_yaml(files(__package__).joinpath("catalog.yaml")))
