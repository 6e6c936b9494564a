"""Whether a text names something: as whole words, whatever the case."""

import re
from collections.abc import Collection


def naming(phrases: Collection[str], *, plurals: bool = False) -> re.Pattern[str]:
    """Finds any of these phrases, e.g. ``art`` in "modern art" and not in "a party hat".

    With ``plurals``, it also finds them before an ending ``s`` or ``es``, which isn't part of the
    match. Without phrases it finds nothing.
    """
    words = "|".join(map(re.escape, phrases)) or "(?!)"
    ending = "(?:e?s)?" if plurals else ""
    return re.compile(rf"(?<!\w)(?:{words})(?={ending}(?!\w))", re.IGNORECASE)


def names(text: str, phrases: Collection[str], *, plurals: bool = False) -> bool:
    """Whether a text names one of these phrases; see ``naming``."""
    return bool(naming(phrases, plurals=plurals).search(text))
