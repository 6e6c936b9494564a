"""Text as a reader sees it: without invisible characters, in plain Latin letters and digits."""

import re
import unicodedata

_SEEN_AS = str.maketrans(
    # Cyrillic, small and capital
    "аеорсухіјѕһԁԛԝґпвкмнтАВЕЅІЈКМНОРСТУХҮ"
    # Greek
    "αεικνορτυχγηΑΒΕΖΗΙΚΜΝΟΡΤΥΧ"
    # Armenian, and Latin letters that Unicode doesn't take apart
    "օսհոıɑɡɩɪłøđħŧʙɢʜʟɴʀꜱᴀᴄᴅᴇᴊᴋᴍᴏᴘᴛᴜᴠᴡᴢ",
    "aeopcyxijshdqwrnbkmhtabesijkmhopctyxy"
    "aeikvoptuxynabezhikmnoptyx"
    "ouhniagiilodhtbghlnrsacdejkmoptuvwz",
)
"""Letters of other alphabets by the Latin ones that they look like."""

_BLANK = dict.fromkeys((0x115F, 0x1160, 0x2800))
"""Letters and signs that show nothing."""

_IN_PICTURES = (0x1F150, 0x1F170, 0x1F1E6)
"""Where the alphabet begins in white on circles, in white on squares, and on flags."""

_PICTURED = {start + at: chr(ord("a") + at) for start in _IN_PICTURES for at in range(26)}

_DIGITS_AS_LETTERS = str.maketrans("013457@$!", "oieastasi")

_WORD = re.compile(r"[a-z0-9@$!]+")


def plain(text: str) -> str:
    """Text in small Latin letters, as far as its characters look like some.

    Accents, and characters that show nothing, are gone; white space of any kind is a space.
    """
    known = unicodedata.normalize("NFKD", text.translate(_PICTURED)).translate(_BLANK)
    seen = "".join(" " if c.isspace() else c for c in known if c.isspace() or _shows(c))
    return seen.translate(_SEEN_AS).casefold()


def _shows(character: str) -> bool:
    """False for marks on other characters, and for what is no character at all."""
    category = unicodedata.category(character)
    return category[0] != "C" and category not in ("Mn", "Me")


def read_as_letters(text: str) -> str:
    """The words of a ``plain`` text that mix letters with digits, with letters for those, as in
    ``b0ok``.

    A 1 is an i, and so may be an l.
    """
    words = dict.fromkeys(_WORD.findall(text))
    read = ((word, word.translate(_DIGITS_AS_LETTERS)) for word in words)
    return " ".join(new for old, new in read if new != old and not old.isdigit())
