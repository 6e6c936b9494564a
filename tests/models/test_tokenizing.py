"""A tokenizer that is kept gives the ids of transformers, and asks it once."""

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from expunge.models.emoji import pipeline_path
from expunge.models.tokenizing import ClipTokenizer

PROMPTS = (
    *("", "ghost", "  Two\tGHOSTS,  it's\n3pm!", "cafe\u0301 caf\u00e9 \u5e7d\u970a \U0001f47b"),
    *("<|endoftext|> ghost <|startoftext|>", "ghost " * 200, "\u200bki\u00add", "a</w>b"),
)


@pytest.fixture(scope="module", params=["pico", "emoji"])
def both(request: pytest.FixtureRequest, pico_folder: Path) -> tuple[ClipTokenizer, CLIPTokenizer]:
    place = pico_folder if request.param == "pico" else pipeline_path()
    ClipTokenizer(place / "tokenizer")
    return ClipTokenizer(place / "tokenizer"), CLIPTokenizer.from_pretrained(place / "tokenizer")


@given(texts=st.lists(st.text(max_size=80), min_size=1, max_size=3))
def test_any_text_has_the_ids_of_transformers(
    both: tuple[ClipTokenizer, CLIPTokenizer], texts: list[str]
) -> None:
    own, plain = both
    for options in ({}, {"truncation": True, "max_length": 8}):
        assert own(texts, **options).input_ids == plain(texts, **options).input_ids


def test_padded_ids_and_masks_are_those_of_transformers(
    both: tuple[ClipTokenizer, CLIPTokenizer],
) -> None:
    own, plain = both
    options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    one, two = (
        tokenizer(list(PROMPTS), max_length=own.model_max_length, **options) for tokenizer in both
    )
    assert one.input_ids.tolist() == two.input_ids.tolist()
    assert one.attention_mask.tolist() == two.attention_mask.tolist()
    assert own(list(PROMPTS)).input_ids == plain(list(PROMPTS)).input_ids
    assert "whole" not in vars(own)


def test_every_piece_has_the_text_and_the_place_of_transformers(
    both: tuple[ClipTokenizer, CLIPTokenizer],
) -> None:
    own, plain = both
    for token in range(len(plain)):
        assert own.decode([token]) == plain.decode([token])
    assert own.all_special_ids == plain.all_special_ids
    options = {"truncation": False, "verbose": False, "return_offsets_mapping": True}
    one, two = own(list(PROMPTS), **options), plain(list(PROMPTS), **options)
    assert one.offset_mapping == two.offset_mapping
    assert [one.word_ids(at) for at in range(len(PROMPTS))] == [
        two.word_ids(at) for at in range(len(PROMPTS))
    ]
    assert "whole" not in vars(own)


def test_all_else_is_asked_of_transformers(both: tuple[ClipTokenizer, CLIPTokenizer]) -> None:
    own, plain = both
    assert own.get_vocab() == plain.get_vocab()
    special = {"return_special_tokens_mask": True}
    assert (
        own(["a ghost"], **special).special_tokens_mask
        == plain(["a ghost"], **special).special_tokens_mask
    )


def test_other_files_or_a_damaged_cache_are_built_anew(
    pico_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    folder = Path(shutil.copytree(pico_folder / "tokenizer", tmp_path / "tokenizer"))
    ids = ClipTokenizer(folder)(["a ghost"]).input_ids
    [kept] = (tmp_path / "cache" / "tokenizers").iterdir()
    kept.write_text(kept.read_text().replace("ghost", "toast"))
    assert ClipTokenizer(folder)(["a ghost"]).input_ids == ids
    assert "whole" not in vars(ClipTokenizer(folder))
    (folder / "more.txt").write_text("another file")
    assert "whole" in vars(ClipTokenizer(folder))
