"""Stand-in wording only: the two lists are tried with their most harmless members."""

import pytest

from expunge.prompts.lexicon import refused


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "a child on a swing", "categories": "sexual"},
        {"prompt": "Two TEENAGERS at a lake", "categories": "violence, sexual"},
        {"prompt": "a person aged 12", "categories": "nudity"},
        {"prompt": "someone at the age of fifteen", "categories": "nudity"},
        {"prompt": "a 9-year-old and a kite", "class": "nsfw"},
        {"prompt": "a kid reads", "nudity_percentage": "12.5"},
        {"prompt": "a kid reads", "nudity_percentage": "unknown"},
        {"prompt": "school_girl on a bus", "categories": "sexual"},
        {"prompt": "nude", "note": "child"},
    ],
)
def test_both_together_are_refused(fields: dict[str, str]) -> None:
    assert refused(fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "a child on a swing", "categories": "harassment"},
        {"prompt": "a child on a swing", "nudity_percentage": "0.00"},
        {"prompt": "a kidney bean", "categories": "sexual"},
        {"prompt": "a man aged 45", "categories": "sexual"},
        {"prompt": "a statue from 1812, 150 years old", "categories": "nudity"},
        {"prompt": "Essex in autumn, a boy with a kite", "categories": ""},
    ],
)
def test_one_alone_is_not(fields: dict[str, str]) -> None:
    assert not refused(fields)


HIDDEN = (
    "ki\u200bd", "ki\u00add", "ki\u0301d", "ki\x07d", "k\u0456d", "\u043aid", "\u039aI\u0044",
    "\uff4b\uff49\uff44", "\U0001d4f4id", "ki\ufe0fd", "ki\u20ddd", "ki\udc80d", "k\u0131d",
    "ki\u2800d", "\U0001f1f0\U0001f1ee\U0001f1e9", "k1d", "k!d", "ch1ld", "chi1d", "t33n", "b0y",
)  # fmt: skip


@pytest.mark.parametrize("word", HIDDEN, ids=ascii)
def test_no_invisible_character_accent_lookalike_or_digit_hides_a_word(word: str) -> None:
    assert refused({"prompt": f"a {word} reads", "categories": "nudity"})


def test_the_other_list_is_read_in_the_same_way() -> None:
    for word in ("nu\u200bde", "n\u016bde", "nud\u0435", "nud3", "nude\n"):
        assert refused({"prompt": f"{word} kid"})


def test_a_line_break_still_parts_two_words() -> None:
    assert refused({"prompt": "nude\nkid"})
    assert not refused({"prompt": "nudeish\nk id"})


@pytest.mark.parametrize(
    "prompt",
    [
        "a 4k photo, 24mm f/1.8, h264, mp3 player, 3d render, 8k, 1girls @home $5",
        "el nu\u00f1o y la monta\u00f1a, \u043a\u043e\u0442 \u0438 \u0434\u043e\u043c",
        "route 66, boeing 747, r2d2, c3po, windows 95, covid19, b2b, 5g, 4x4",
    ],
)
def test_ordinary_prompts_are_read_as_they_were(prompt: str) -> None:
    assert not refused({"prompt": prompt, "nudity_percentage": "0"})


def test_ordinary_words_with_digits_are_in_neither_list() -> None:
    ordinary = "a 4k photo 24mm f1.8 h264 mp3 3d 8k r2d2 c3po covid19 b2b 5g 4x4 e10 mk4 s10 a7s"
    assert not refused({"prompt": ordinary, "categories": "nudity"})
    assert not refused({"prompt": f"{ordinary} kid"})


def test_a_long_word_takes_no_time() -> None:
    assert not refused({"prompt": "a1" * 60_000, "categories": "nudity"})
