"""The catalogue is consistent and big enough to measure on."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from expunge.models.emoji import catalog
from expunge.models.emoji.vocabulary import Catalog, EmojiObject


def test_there_are_a_hundred_objects_in_seven_styles() -> None:
    assert len(catalog().objects) >= 100
    assert len(catalog().styles) == 7
    assert len(list(catalog().prompts())) == len(catalog().objects) * 7


def test_every_kind_has_members() -> None:
    for kind in ("object", "animal", "food", "vehicle", "plant", "character", "unsafe"):
        assert catalog().of_kind(kind)


def test_every_object_can_be_asked_for_without_its_name() -> None:
    for entry in catalog().objects:
        assert all((entry.synonyms, entry.implicit, entry.neighbours))
        assert all(entry.name not in wording for wording in entry.implicit)


def test_an_unknown_object_is_an_error_that_lists_what_there_is() -> None:
    with pytest.raises(KeyError, match="santa claus"):
        catalog().object("no such thing")


def test_an_unknown_key_is_refused() -> None:
    data = catalog().model_dump()
    with pytest.raises(ValidationError):
        Catalog.model_validate(data | {"surprise": 1})


def test_a_neighbour_outside_the_catalogue_is_refused() -> None:
    data = catalog().model_dump()
    stray = EmojiObject(
        name="stray", kind="object", hexcode="1F300", synonyms=(), implicit=(), neighbours=("x",)
    )
    data["objects"] = [*data["objects"], stray.model_dump()]
    with pytest.raises(ValidationError, match="unknown neighbours"):
        Catalog.model_validate(data)
