"""What is erased: a ``Concept``, the ``Policy`` that lists several, and prompts that name them."""

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from expunge.errors import ExpungeError
from expunge.sentences import PLACE, beginning, fill
from expunge.sentences import Context as Context
from expunge.spelling import distinct, spelling
from expunge.texts import read_yaml

RECORD = "record"
"""Context of a validation that reads a record of what was, contradictions included."""


def _visible(words: str) -> str:
    if not spelling(words):
        raise ValueError(f"{words!r} holds nothing that can be seen")
    return words


Kind = Literal["object", "style", "character", "unsafe"]
Words = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1), AfterValidator(_visible)
]


def listed(value: Any) -> Any:
    """A tuple, where one word stands for a list of one: ``keep: dog`` means ``keep: [dog]``."""
    return (value,) if isinstance(value, str) else value


WordList = Annotated[tuple[Words, ...], BeforeValidator(listed)]


TEMPLATES: dict[Kind, tuple[str, ...]] = {
    "object": ("a picture of a {}", "a photo of a {}", "an image of a {}"),
    "character": ("a picture of {}", "a portrait of {}", "an image of {}"),
    "style": ("a picture in {} style", "{} style", "art in the style of {}"),
    "unsafe": ("a picture of {}", "a photo of {}", "an image of {}"),
}
"""Sentences around a concept's words, by kind; ``{}`` is where the words go."""

ANCHORS: dict[Kind, str] = {"object": "", "character": "", "style": "art", "unsafe": ""}
"""What replaces a concept by default; "" is the empty prompt."""


class Pair(NamedTuple):
    """A prompt that names a concept, and the prompt that replaces it."""

    erase: str
    anchor: str
    erase_head: str
    """``erase`` up to the end of the concept's words."""
    anchor_head: str
    """``anchor`` up to the end of the replacement."""


class Concept(BaseModel):
    """One thing that the model must no longer draw."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: Words
    """The words that name it, e.g. ``santa claus``."""
    synonyms: WordList = ()
    """Other words for it, erased together with the target."""
    kind: Kind = "object"
    anchor: str | None = None
    """What is drawn instead; ``None`` means ``ANCHORS[kind]``, "" the empty prompt."""
    keep: WordList = ()
    """Words of the same kind, or prompts, whose pictures must stay."""
    contexts: tuple[Context, ...] = ()
    """Sentences with ``{}`` for the words, of the concept and of what is kept for it. They take
    precedence over a method's sentences."""

    @model_validator(mode="after")
    def _consistent(self, info: ValidationInfo) -> "Concept":
        if info.context == RECORD:
            return self
        erased = {spelling(phrase) for phrase in self.phrases}
        if clash := [words for words in self.keep if spelling(words) in erased]:
            raise ValueError(f"{clash[0]!r} is both erased and kept; remove one of the two")
        if self.anchor is not None and spelling(self.anchor) in erased:
            raise ValueError(f"the anchor {self.anchor!r} is what is erased; choose other words")
        return self

    @property
    def phrases(self) -> tuple[str, ...]:
        """The target, then its synonyms, each once."""
        return distinct(self.given)

    @property
    def given(self) -> tuple[str, ...]:
        """The target and the synonyms as they are given; released programs count doubles twice."""
        return (self.target, *self.synonyms)

    @property
    def replacement(self) -> str:
        """The words that take its place."""
        return ANCHORS[self.kind] if self.anchor is None else self.anchor

    def sentences(self, contexts: tuple[Context, ...] = ()) -> tuple[Context, ...]:
        """Sentences with ``{}`` for the words: the concept's own, or else those given.

        If there are neither, the words alone and the templates of its kind.
        """
        return self.contexts or contexts or (PLACE, *TEMPLATES[self.kind])

    def pairs(self, contexts: tuple[Context, ...] = ()) -> "Iterator[Pair]":
        """Each phrase in each of its ``sentences``, beside the sentence with the replacement."""
        return self.pairs_in(self.sentences(contexts))

    def neutral_pairs(self, contexts: tuple[Context, ...] = ()) -> list[tuple[str, str]]:
        """Each prompt of ``pairs`` with its anchor; without a replacement, the empty prompt."""
        return [
            (pair.erase, pair.anchor if self.replacement else "") for pair in self.pairs(contexts)
        ]

    def pairs_in(self, sentences: Sequence[Context]) -> "Iterator[Pair]":
        """As ``pairs``, in these sentences only."""
        for phrase in self.phrases:
            for sentence in sentences:
                before = beginning(sentence)
                yield Pair(
                    fill(sentence, phrase),
                    fill(sentence, self.replacement),
                    before + phrase,
                    before + self.replacement,
                )


class Limit(BaseModel):
    """A bound on one measurement; an audit passes if every bound is met."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    group: Words
    """The group of prompts that is measured, e.g. ``explicit`` or ``other objects``."""
    metric: str = ""
    """Name of the metric. The default is the share of pictures that show the concept or, for kept
    prompts, the share that are right."""
    concept: WordList = ()
    """Targets of the concepts that the limit applies to; by default to all."""
    at_most: float | None = None
    at_least: float | None = None
    by: Literal["interval", "value"] = "interval"
    """What must lie within the limit: the whole 95 % interval, or only the value."""

    @model_validator(mode="after")
    def _limits(self) -> "Limit":
        if self.at_most is None and self.at_least is None:
            raise ValueError(f"the limit on {self.group!r} needs at_most or at_least")
        return self


class Policy(BaseModel):
    """The concepts to erase, and the prompts to keep for all of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    erase: Annotated[tuple[Concept, ...], Field(min_length=1)]
    keep: WordList = ()
    """Words or prompts whose pictures must stay for every erased concept."""
    limits: tuple[Limit, ...] = ()
    """What an audit demands; erasing ignores it."""

    @model_validator(mode="after")
    def _consistent(self) -> "Policy":
        owners: dict[str, Concept] = {}
        for concept in self.erase:
            for phrase in concept.phrases:
                other = owners.setdefault(spelling(phrase), concept)
                if other is not concept:
                    raise ValueError(_twice(phrase, other, concept))
        for words in self.kept:
            if spelling(words) in owners:
                raise ValueError(f"{words!r} is both erased and kept; remove one of the two")
        for concept in self.erase:
            if spelling(concept.replacement) in owners:
                raise ValueError(
                    f"{concept.replacement!r} takes the place of {concept.target!r}, and is erased "
                    "itself; choose another anchor"
                )
        return self

    @property
    def phrases(self) -> tuple[str, ...]:
        """All phrases of all concepts, each once."""
        return distinct([phrase for concept in self.erase for phrase in concept.phrases])

    @property
    def kept(self) -> tuple[str, ...]:
        """Every prompt to keep, each once, in the order of the file."""
        own = (words for concept in self.erase for words in concept.keep)
        return distinct((*self.keep, *own))

    def kept_in(self, contexts: tuple[Context, ...] = ()) -> dict[str, tuple[Context, ...]]:
        """The sentences for each of ``kept``: those of the concepts that it is kept for."""
        found: dict[str, dict[Context, None]] = {spelling(words): {} for words in self.kept}
        for concept in self.erase:
            for words in (*self.keep, *concept.keep):
                found[spelling(words)] |= dict.fromkeys(concept.sentences(contexts))
        return {words: tuple(found[spelling(words)]) for words in self.kept}

    def kept_prompts(self, contexts: tuple[Context, ...] = ()) -> tuple[str, ...]:
        """Every kept word as it is written, then in its sentences, sentence by sentence."""
        kept = self.kept_in(contexts)
        places: dict[Context, list[str]] = {PLACE: list(kept)}
        for words, sentences in kept.items():
            for sentence in sentences:
                places.setdefault(sentence, []).append(words)
        return tuple(
            dict.fromkeys(fill(sentence, one) for sentence, own in places.items() for one in own)
        )

    @classmethod
    def of(cls, concepts: "str | Concept | Policy | Iterable[str | Concept]") -> "Policy":
        """A policy from words, a ``Concept``, several of either, or a policy.

        Raises:
            ExpungeError: no concept, or concepts that contradict each other.
        """
        if isinstance(concepts, Policy):
            return concepts
        listed = [concepts] if isinstance(concepts, str | Concept) else list(concepts)
        if not listed:
            raise ExpungeError("no concept given; name at least one thing to erase")
        try:
            return cls(erase=tuple(Concept(target=c) if isinstance(c, str) else c for c in listed))
        except ValidationError as error:
            raise ExpungeError(explain(error)) from None

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Policy":
        """Read a YAML policy file.

        Raises:
            ExpungeError: the file is missing, is not YAML, or has a wrong or unknown entry.
        """
        content = read_yaml(path, "the policy")
        if not isinstance(content, dict):
            raise ExpungeError(f"{path}: a policy is a mapping with the entries 'erase' and 'keep'")
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise ExpungeError(f"{path}: {explain(error)}") from None


def _twice(phrase: str, one: Concept, two: Concept) -> str:
    """What to say of a phrase that two concepts name."""
    anchors = [concept.replacement for concept in (one, two)]
    if spelling(anchors[0]) == spelling(anchors[1]):
        return f"{phrase!r} is listed twice"
    return (
        f"{phrase!r} is listed twice, with the anchors {anchors[0]!r} (of {one.target!r}) and "
        f"{anchors[1]!r} (of {two.target!r}); name it once"
    )


def explain(error: ValidationError) -> str:
    """The first fault of a pydantic error as one sentence that says where it is."""
    fault = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in fault["loc"])
    message = str(fault["msg"]).removeprefix("Value error, ")
    return f"{place}: {message}" if place else message
