"""Other words: synonyms, misspellings and a list of the user's, in the place of the name.

Nothing is optimised. Each picture is asked for with the words for which the attacked model answers
most like the base does for the concept, at a few points. The concept's own name isn't among them.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from expunge.attacks import points
from expunge.attacks.base import Attack, Knows, Search
from expunge.attacks.found import Found
from expunge.attacks.shortlist import Shortlist
from expunge.attacks.target import Target
from expunge.attacks.tokens import Tokens
from expunge.concepts import Concept
from expunge.errors import ExpungeError
from expunge.prompts.lists import lines
from expunge.seeding import generator
from expunge.spelling import distinct, names, spelling, whole


def _read(path: str) -> str:
    try:
        lines(path)
    except ExpungeError as error:
        raise ValueError(str(error)) from None
    return path


class Words(Attack):
    """The best of a list of words for each picture."""

    name: ClassVar[str] = "words"
    title: ClassVar[str] = "Other words"
    year: ClassVar[int] = 2024
    url: ClassVar[str] = "https://arxiv.org/abs/2310.11868"
    knows: ClassVar[frozenset[Knows]] = frozenset({"weights", "base", "pictures"})

    words: tuple[str, ...] = ()
    """Words or descriptions to ask with."""
    file: Annotated[str, AfterValidator(_read)] | None = None
    """A text file with more, one a line: other languages, descriptions."""
    misspellings: bool = True
    """Whether the name is misspelt: a letter left out or doubled, or two exchanged."""
    looks: int = Field(4, ge=1)
    """Points at which words are compared."""

    def check(self, target: Target) -> None:
        Tokens.of(target)

    def begin(self, target: Target, pictures: Sequence[int], seed: int) -> Search:
        return ListSearch(self, target, pictures, seed)

    def candidates(self, concept: Concept) -> tuple[str, ...]:
        """Words for the concept, the given ones first, none of which holds its name.

        Raises:
            ExpungeError: there are none.
        """
        given = (*self.words, *concept.synonyms, *(lines(Path(self.file)) if self.file else ()))
        spelt = misspelt(concept.target) if self.misspellings else ()
        own = _solid(concept.target)
        found = [
            one
            for one in distinct((*given, *spelt))
            if not names(one, [concept.target], plural=True) and _solid(one) != own
        ]
        if not found:
            raise ExpungeError(
                f"no other words for {concept.target!r}; give words or a file of them"
            )
        return tuple(found)


class ListSearch(Search):
    """One candidate a step, for the pictures' first prompt."""

    def __init__(self, attack: Words, target: Target, pictures: Sequence[int], seed: int) -> None:
        self.tokens = Tokens.of(target)
        self.prompts = [
            self.tokens.ids(renamed(target.prompts[pictures[0]], target.concept, words))
            for words in attack.candidates(target.concept)
        ]
        numbers = target.known.draw(attack.looks, generator(seed, "looks", pictures[0]), pictures)
        first = next((one for one in self.prompts if self.tokens.allowed(one)), None)
        if first is None:
            raise ExpungeError(f"all other words for {target.concept.target!r} are refused")
        self.shortlist = Shortlist(self.tokens, points.proxy(target, numbers, "base"), first)
        self.steps = 0

    def step(self) -> None:
        self.shortlist.see(self.prompts[self.steps])
        self.steps += 1

    @property
    def state(self) -> Mapping[str, Tensor]:
        return {**self.shortlist.state, "steps": torch.tensor(self.steps)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.shortlist.restore(state)
        self.steps = int(state["steps"])

    def found(self) -> Found:
        return Found(ids=self.shortlist.best, loss=self.shortlist.loss)

    @property
    def over(self) -> bool:
        return self.steps >= len(self.prompts)


def renamed(prompt: str, concept: Concept, words: str) -> str:
    """A prompt with other words in the place of the concept's; the words alone if it has none."""
    for phrase in concept.phrases:
        found = whole(phrase).sub(lambda _: words, prompt)
        if found != prompt:
            return found
    return words


def misspelt(name: str) -> Iterator[str]:
    """A name with one slip of the pen in each word, word by word, always in the same order."""
    words = name.split()
    for at, word in enumerate(words):
        for slip in _slips(word):
            yield " ".join([*words[:at], slip, *words[at + 1 :]])


def _slips(word: str) -> Iterator[str]:
    """The first letter stays, as in most slips."""
    for at in range(1, len(word)):
        yield word[:at] + word[at + 1 :]
        if at + 1 < len(word):
            yield word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        yield word[: at + 1] + word[at:]


def _solid(words: str) -> str:
    return spelling(words).replace(" ", "")
