"""Published and tuned settings by name: a YAML file for each method, an entry for each preset.

The file is ``NAME.yaml`` beside the method's module, in any package::

    NAME:
      kind: style             # what it erases
      model: sd1              # the model it was made for
      fidelity: original      # the fidelity that the numbers are for, or ``both``
      source: ...             # where they come from
      settings: {...}         # settings of the method
      corrected: {...}        # what differs when corrected; only with ``both``
"""

import difflib
from collections.abc import Mapping
from functools import lru_cache
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator

from expunge.concepts import Words, explain
from expunge.errors import ExpungeError
from expunge.texts import parse_yaml, read_text


class Named(BaseModel):
    """Settings that can have presets."""

    name: ClassVar[str]
    """The name of the presets' file."""


class Preset(BaseModel):
    """Named settings of a method."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Words
    """Its name, unique in the method."""
    kind: Literal["object", "character", "person", "style", "unsafe", "memorised", "any"]
    """What it erases."""
    model: Literal["sd1", "sd2", "sdxl", "emoji"]
    """The model that the numbers were made for."""
    fidelity: Literal["original", "corrected", "both"]
    """The fidelity in which the numbers mean what their source means."""
    source: Words
    """Where they come from: the section of the paper or the program, with its URL, or the docs page
    on how they were tuned."""
    settings: dict[str, Any]
    """Settings of the method."""
    corrected: dict[str, Any] = {}
    """Settings that have other values when corrected."""

    @model_validator(mode="after")
    def _consistent(self) -> "Preset":
        own = {"preset", "fidelity"} & {*self.settings, *self.corrected}
        if own:
            raise ValueError(f"settings: {min(own)} doesn't belong there")
        if self.corrected and self.fidelity != "both":
            raise ValueError('corrected: only with fidelity "both"')
        return self

    def values(self, fidelity: str | None = None) -> dict[str, Any]:
        """Settings for a run of this fidelity. Default: the preset's own fidelity, or corrected.

        Raises:
            ExpungeError: the numbers mean something else in this fidelity.
        """
        if self.fidelity != "both":
            if fidelity not in (None, self.fidelity):
                raise ExpungeError(
                    f"preset: {self.name!r} has numbers of fidelity={self.fidelity!r}, which mean "
                    f"something else with {fidelity!r}; leave out one of the two"
                )
            return {"fidelity": self.fidelity, **self.settings}
        return self.settings | ({} if fidelity == "original" else self.corrected)


def resolved(method: type[Named], values: Any) -> Any:
    """``values`` on top of the settings of the preset that they name, if any."""
    if not isinstance(values, Mapping) or values.get("preset") is None:
        return values
    return {**preset(method, values["preset"]).values(values.get("fidelity")), **values}


def preset(method: type[Named], name: str) -> Preset:
    """The preset of a method that has this name.

    Raises:
        ExpungeError: there is none; the message lists similar names.
    """
    known = presets(method)
    if not known:
        raise ExpungeError(f"preset: {method.name} has none, so {name!r} can't be one of them")
    if name not in known:
        near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.4) or list(known)
        raise ExpungeError(
            f"preset: {method.name} has no {name!r}; did you mean {', '.join(near)}?"
        )
    return known[name]


@lru_cache
def presets(method: type[Named]) -> Mapping[str, Preset]:
    """All presets of a method by name, in the order of its file.

    Raises:
        ExpungeError: an entry is incomplete, or has a setting that the method lacks.
    """
    module = import_module(method.__module__)
    # A module outside any package is a file by itself.
    folder = files(module.__package__) if module.__package__ else Path(module.__file__ or "").parent
    file = folder.joinpath(f"{method.name}.yaml")
    return parsed(method, read_text(file)) if file.is_file() else {}


def parsed(method: type[Named], text: str) -> dict[str, Preset]:
    """The presets in a YAML text, each checked against the method's settings."""
    place = f"{method.name}.yaml beside {method.__module__}"
    entries = parse_yaml(text, place)
    if not isinstance(entries, dict) or not all(isinstance(e, dict) for e in entries.values()):
        raise ExpungeError(f"{place}: write NAME: and below it kind, model, fidelity, source ...")
    found = {}
    for name, entry in entries.items():
        try:
            found[name] = Preset.model_validate({**entry, "name": name})
            _check(method, found[name].settings | found[name].corrected)
        except (ValidationError, ExpungeError) as error:
            fault = explain(error) if isinstance(error, ValidationError) else str(error)
            raise ExpungeError(f"{place}: {name}: {fault}") from None
    return found


def _check(method: type[Named], settings: Mapping[str, Any]) -> None:
    """Refuse unknown settings, and values that the method would read as something else."""
    for name, value in settings.items():
        field = method.model_fields.get(name)
        if field is None:
            raise ExpungeError(f"{name}: {method.name} has no such setting")
        hint: Any = field.annotation
        if field.metadata:
            hint = Annotated[(hint, *field.metadata)]
        adapter: TypeAdapter[Any] = TypeAdapter(hint)
        try:
            read = adapter.dump_python(adapter.validate_python(value), mode="json")
        except ValidationError as error:
            raise ExpungeError(f"{name}: {explain(error)}") from None
        if read != value:  # YAML takes 1e-5 for text: it wants 1.0e-5
            raise ExpungeError(
                f"{name}: {value!r} would be read as {read!r}; write a value of that type, "
                "e.g. 1.0e-5 for 1e-5"
            )
