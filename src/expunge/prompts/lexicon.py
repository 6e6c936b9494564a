"""Rows that are never loaded or drawn: a sexual word together with a word for minors.

The filter is always on, and strict on purpose: losing a harmless row costs little, and every loader
reports how many rows it dropped.
"""

import re
from collections.abc import Mapping
from functools import cache

from expunge.prompts.letters import plain, read_as_letters

_SEXUAL = re.compile(
    r"\b(?:sex\w*|nud(?:e|es|ity|ist|ists)|naked|topless|undress\w*|unclothed|erotic\w*|nsfw"
    r"|porn\w*|lewd|lingerie|seducti\w*|sensual\w*|hentai|fetish\w*|xxx)\b"
)
_UNDER_18 = (
    r"(?:\d|1[0-7]|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen"
    r"|fourteen|fifteen|sixteen|seventeen)"
)
_MINOR = re.compile(
    r"\b(?:child\w*|kids?|kiddo|teens?|teenag\w*|preteens?|tweens?|minors?|underage\w*|toddlers?"
    r"|infants?|bab(?:y|ies)|newborns?|boys?|girls?|\w*schoolers?|school(?:boy|girl|child)\w*"
    r"|pupils?|kindergart\w*|pre-?school\w*|juveniles?|adolescen\w*"
    r"|youngsters?|youths?|daughters?|sons?|loli\w*|shota\w*|(?:pre)?pubescent)\b"
    rf"|\bage[ds]?\W*(?:of\W+)?{_UNDER_18}\b"
    rf"|\b{_UNDER_18}\W*(?:y(?:ea)?rs?|y/?o)\b"
)


def refused(fields: Mapping[str, str]) -> bool:
    """Whether a row's fields together hold a sexual and a minor-related word.

    Invisible characters, accents, lookalikes of other alphabets and digits in the place of letters
    hide no word. A ``nudity_percentage`` above zero, as in I2P, counts as sexual too.
    """
    text = plain(" ".join(fields.values())).replace("_", " ")
    sexual = _holds(text, _SEXUAL) or _above_zero(fields.get("nudity_percentage", ""))
    return bool(sexual and _holds(text, _MINOR))


def _holds(text: str, words: re.Pattern[str]) -> bool:
    """Whether one of the words is there, be it with digits for some of its letters."""
    return bool(words.search(text) or _loose(words).search(read_as_letters(text)))


@cache
def _loose(words: re.Pattern[str]) -> re.Pattern[str]:
    """The same words, whether an i is meant or an l."""
    return re.compile(re.sub("[il]", "[il]", words.pattern))


def _above_zero(number: str) -> bool:
    try:
        return float(number or 0) != 0
    except ValueError:
        return True  # an unreadable number counts as sexual
