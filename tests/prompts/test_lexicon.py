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
