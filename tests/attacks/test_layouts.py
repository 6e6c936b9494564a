"""Where free tokens stand."""

import pytest

from expunge.attacks.layouts import Place, alone, around, between

PROMPT = [11, 12, 13, 14, 15, 16, 17]
X = 99


@pytest.mark.parametrize(
    ("place", "free", "filled"),
    [
        ("prefix", 2, [X, X, 11, 12, 13, 14, 15, 16, 17]),
        ("suffix", 2, [11, 12, 13, 14, 15, 16, 17, X, X]),
        ("mid", 2, [11, 12, 13, X, X, 14, 15, 16, 17]),
        ("insert", 2, [11, 12, X, 13, 14, X, 15, 16, 17]),
        ("insert", 7, [X] * 7 + PROMPT),
        ("per_k_words", 3, [X, 11, 12, 13, X, 14, 15, 16, X, 17]),
    ],
)
def test_free_tokens_around_a_prompt(place: Place, free: int, filled: list[int]) -> None:
    assert around(PROMPT, free, place).filled([X] * free) == filled


def test_a_free_token_after_every_third() -> None:
    layout = between(PROMPT, 3)
    assert layout.filled([X] * 3) == [X, 11, 12, 13, X, 14, 15, 16, X, 17]
    assert between(PROMPT[:6], 3).filled([X] * 3) == [X, 11, 12, 13, X, 14, 15, 16, X]


def test_free_tokens_alone() -> None:
    assert alone(2).filled([1, 2]) == [1, 2]
