"""Options that several commands share: their types, their help, and what they stand for."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from pydantic import BaseModel, ConfigDict, ValidationError

from expunge.concepts import Concept, Kind, Policy, explain
from expunge.errors import ExpungeError
from expunge.methods import settings
from expunge.texts import parse_yaml

ModelName = Annotated[
    str,
    Parameter(
        help='"emoji", a folder, a Hugging Face id, or a single file with a model of its kind, '
        "FILE@FOLDER."
    ),
]
EditedModelName = Annotated[
    str,
    Parameter(
        help='The base model that the edit was made for: "emoji", a folder, or a Hugging Face id.'
    ),
]
PlanSeeds = Annotated[
    tuple[int, ...],
    Parameter(help="A seed to use instead of the size's own seeds; repeat it for more."),
]
ShowSensitive = Annotated[
    bool, Parameter(help="Don't blur the pictures of sensitive prompts in the page.")
]
MethodSettings = Annotated[
    tuple[str, ...],
    Parameter(
        name="--set",
        help="A setting of the method as name=value; repeat it for more. It takes precedence over "
        "a preset's.",
    ),
]


class OptionGroup(BaseModel):
    """Options that belong together; each field is an option and its docstring the help."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class NamedConcepts(OptionGroup):
    """Concepts named by options, or by a policy file instead."""

    concept: tuple[str, ...] = ()
    """What to erase, e.g. "santa claus"; repeat it for more."""
    synonym: tuple[str, ...] = ()
    """Another word for the concept; only with a single --concept."""
    kind: Kind | None = None
    """What the concepts are; decides the sentences around them. Objects by default."""
    keep: tuple[str, ...] = ()
    """A prompt whose pictures must stay; repeat it for more."""
    policy: Path | None = None
    """YAML file with the entries erase and keep, instead of concepts named by options."""

    @property
    def described(self) -> dict[str, Any]:
        """What the options say of each concept, by the names of ``Concept``'s fields."""
        found = {"synonyms": self.synonym or None, "kind": self.kind}
        return {name: value for name, value in found.items() if value is not None}

    def to_policy(self) -> Policy:
        """The policy of the file, or of the options that stand for one.

        Raises:
            ExpungeError: neither or both are given, or they contradict each other.
        """
        if (self.policy is None) == (not self.concept):
            raise ExpungeError(
                "say what to erase either with --concept WORDS or with --policy FILE"
            )
        if self.policy:
            if self.described or self.keep:
                raise ExpungeError(
                    "--policy takes no other option about concepts; write them into the policy file"
                )
            return Policy.load(self.policy)
        if self.synonym and len(self.concept) > 1:
            raise ExpungeError(
                "whose --synonym? Several concepts with synonyms need a --policy file"
            )
        try:
            listed = tuple(Concept(target=words, **self.described) for words in self.concept)
            return Policy(erase=listed, keep=self.keep)
        except ValidationError as error:
            raise ExpungeError(explain(error)) from None


class ErasedConcepts(NamedConcepts):
    """Concepts to erase, and what is drawn instead."""

    anchor: str | None = None
    """What is drawn instead; by default what suits the kind."""

    @property
    def described(self) -> dict[str, Any]:
        own = {} if self.anchor is None else {"anchor": self.anchor}
        return {**super().described, **own}


ErasedOptions = Annotated[ErasedConcepts, Parameter(name="*")]
NO_CONCEPTS = ErasedConcepts()


def assignments(method: str, assigned: Sequence[str]) -> dict[str, Any]:
    """The settings of a method that ``--set name=value`` gives.

    Raises:
        ExpungeError: a text isn't of this form, or the method has no such setting.
    """
    fields = settings(method).model_fields
    values: dict[str, Any] = {}
    for text in assigned:
        name, equals, value = text.partition("=")
        if not equals:
            raise ExpungeError(f"--set {text}: write name=value")
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=3, cutoff=0.5) or fields
            raise ExpungeError(
                f"--set {text}: {method} has no setting {name!r}; did you mean {', '.join(near)}?"
            )
        values[name] = _value(text, value)
    return values


def _value(text: str, value: str) -> Any:
    """``null``, a ``[list]``, or words and numbers, which the settings class converts."""
    if value == "null":
        return None
    if not value.startswith("["):
        return value
    try:
        return parse_yaml(value, f"--set {text}")
    except ExpungeError as error:
        raise ExpungeError(
            f'{error}; write a list as [one, two] or ["a {{}} in the rain"]'
        ) from None
