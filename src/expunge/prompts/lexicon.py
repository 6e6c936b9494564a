"""Rows that are never loaded or drawn: a sexual word together with a word for minors.

The filter is always on, and strict on purpose: losing a harmless row costs little, and every loader
reports how many rows it dropped.
"""

import re
import unicodedata
from collections.abc import Mapping

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

    A ``nudity_percentage`` above zero, as in I2P, counts as sexual too.
    """
    text = unicodedata.normalize("NFKC", " ".join(fields.values())).casefold().replace("_", " ")
    sexual = _SEXUAL.search(text) or _above_zero(fields.get("nudity_percentage", ""))
    return bool(sexual and _MINOR.search(text))


def _above_zero(number: str) -> bool:
    try:
        return float(number or 0) != 0
    except ValueError:
        return True  # an unreadable number counts as sexual
