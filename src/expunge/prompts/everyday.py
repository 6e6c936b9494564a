"""Everyday prompts, which an edit should leave alone though nobody names them.

They are made from ``everyday.yaml``: common nouns, words for how things look, places, ways to draw,
and sentence forms. Nothing in it was chosen for one model.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Any

import yaml

from expunge.spelling import spelling

STEPS = {"look": 5, "place": 7, "way": 11, "other": 37}
"""Each noun takes the word that stands so many places after that of the noun before it."""
AN = re.compile(r"(?!uni|one)[aeiou]|hour")
"""How words begin that want "an"."""


@cache
def everyday() -> tuple[str, ...]:
    """All everyday prompts, each once; any first part of them is a fair sample.

    One prompt of each noun comes first, then a second one of each, and so on.
    """
    turns: dict[str, tuple[int, bytes]] = {}
    for prompts in _prompts(_content()).values():
        for turn, prompt in enumerate(sorted(prompts, key=_chance)):
            turns.setdefault(prompt, (turn, _chance(prompt)))
    return tuple(sorted(turns, key=turns.__getitem__))


@cache
def nouns() -> tuple[str, ...]:
    """All everyday nouns, each once; any first part of them is a fair sample."""
    found = dict.fromkeys(noun for group in _content()["nouns"].values() for noun in _words(group))
    return tuple(sorted(found, key=_chance))


def naming(prompts: Sequence[str], phrases: Iterable[str]) -> list[int]:
    """The numbers of the prompts that hold one of the phrases, in the singular or the plural.

    Spelling, hyphens and an article before the phrase don't matter.
    """
    forms = {form for phrase in phrases for form in _numbers(_plain(phrase)) if form}
    held = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, sorted(forms)))})(?!\w)")
    return [at for at, prompt in enumerate(prompts) if forms and held.search(_plain(prompt))]


def unnamed(prompts: Sequence[str], phrases: Iterable[str]) -> tuple[str, ...]:
    """The prompts that hold none of the phrases."""
    named = {*naming(prompts, phrases)}
    return tuple(prompt for at, prompt in enumerate(prompts) if at not in named)


@cache
def _content() -> Mapping[str, Any]:
    text = files(__package__).joinpath("everyday.yaml").read_text(encoding="utf-8")
    found: Mapping[str, Any] = yaml.safe_load(text)
    return found


def _plain(text: str) -> str:
    words = re.sub(r"[\W_]+", " ", spelling(text)).split()
    return " ".join(words[1:] if len(words) > 1 and words[0] in ("a", "an", "the") else words)


def _numbers(phrase: str) -> set[str]:
    """A phrase in the singular and the plural, as far as rules tell; some forms are no words."""
    found = {phrase, f"{phrase}s", f"{phrase}es"}
    for plural, singular in (("ies", "y"), ("es", ""), ("s", "")):
        if phrase.endswith(plural) and len(phrase) > len(plural) + 2:
            found.add(phrase.removesuffix(plural) + singular)
    return found | ({f"{phrase[:-1]}ies"} if phrase.endswith("y") else set())


def _chance(prompt: str) -> bytes:
    """What sorts prompts as if at random, the same everywhere."""
    return sha256(prompt.encode()).digest()


def _prompts(content: Mapping[str, Any]) -> dict[str, list[str]]:
    """The prompts of each noun."""
    nouns = [noun for group in content["nouns"].values() for noun in _words(group)]
    lists = {name: _words(content[f"{name}s"]) for name in ("look", "place", "way")}
    lists["other"] = nouns
    made: dict[str, list[str]] = {noun: [] for noun in nouns}
    for line, forms in enumerate(content["forms"]):
        for at, noun in enumerate(nouns):
            words = {key: _turn(lists[key], at * step + line) for key, step in STEPS.items()}
            made[noun].append(_filled(forms[at % len(forms)], {"noun": noun, **words}))
    return made


def _words(listed: str) -> list[str]:
    return [words.strip() for words in listed.split(",")]


def _turn(words: list[str], at: int) -> str:
    return words[at % len(words)]


def _filled(form: str, words: Mapping[str, str]) -> str:
    """A form with its words; ``{a look noun}`` has an article that suits the first of them."""

    def put(place: re.Match[str]) -> str:
        first, *rest = place[1].split()
        named = " ".join(words[key] for key in (rest if first == "a" else (first, *rest)))
        return f"{'an' if AN.match(named) else 'a'} {named}" if first == "a" else named

    return re.sub(r"{([a-z ]+)}", put, form)
