"""When differently written words are the same words."""

import re
import unicodedata
from collections.abc import Iterable


def spelling(words: str) -> str:
    """Words in the one form in which they are compared.

    Capitals, white space of any kind, invisible characters and Unicode's several forms of one
    letter make no difference.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", words).casefold())
    visible = (c for c in folded if c.isspace() or unicodedata.category(c) not in ("Cc", "Cf"))
    return " ".join("".join(visible).split())


def distinct(words: Iterable[str]) -> tuple[str, ...]:
    """These, each once, as the first is written."""
    first: dict[str, str] = {}
    for one in words:
        first.setdefault(spelling(one), one)
    return tuple(first.values())


def whole(phrase: str) -> re.Pattern[str]:
    """What finds a phrase in a text as whole words, whatever its capitals and spaces."""
    words = r"\s+".join(map(re.escape, phrase.split()))
    return re.compile(rf"(?<!\w){words}(?!\w)", re.IGNORECASE)


def names(prompt: str, phrases: Iterable[str], *, plural: bool = False) -> bool:
    """Whether a prompt holds one of these phrases as whole words.

    Args:
        prompt: the prompt.
        phrases: what is looked for.
        plural: count a phrase with an s or es behind it, too.
    """
    text, ending = spelling(prompt), "(?:s|es)?" if plural else ""
    return any(
        re.search(rf"(?<!\w){re.escape(phrase)}{ending}(?!\w)", text)
        for phrase in map(spelling, phrases)
        if phrase
    )
