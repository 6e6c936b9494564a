from pathlib import Path

import pytest

from expunge import Concept, ExpungeError
from expunge.prompts.lists import Replacements, captions, contexts, replacements


def written(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_captions_stand_one_a_line_or_in_a_column(tmp_path: Path) -> None:
    text = written(tmp_path, "a.txt", "a dog\n\n  a cat, asleep \n")
    table = written(tmp_path, "a.csv", 'id, caption\n1,a dog\n2,"a cat, asleep"\n3,\n')
    assert captions(text).prompts == captions(table).prompts == ("a dog", "a cat, asleep")


def test_refused_captions_are_dropped_and_counted(tmp_path: Path) -> None:
    table = written(tmp_path, "a.csv", "prompt,nudity_percentage\na child,1\na child,0\n")
    loaded = captions(table)
    assert (loaded.prompts, loaded.dropped) == (("a child",), 1)
    table.write_text("prompt,nudity_percentage\na child,1\n")
    with pytest.raises(ExpungeError, match="all 1 were dropped"):
        captions(table)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "[]", "a .txt or a .csv file"),
        ("a.txt", "\n", "no caption in it"),
        ("a.csv", "id,words\n1,a dog\n", "no column prompt or caption or text"),
        ("a.csv", "id,prompt\n1,a dog, asleep\n", "line 2: more fields than the header"),
        ("a.csv", 'id,prompt\n1,"a dog\n', "not well-formed"),
    ],
)
def test_faulty_captions_say_what_is_wrong(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    with pytest.raises(ExpungeError, match=message):
        captions(written(tmp_path, name, text))


def test_contexts_hold_the_place_of_the_words_once(tmp_path: Path) -> None:
    assert contexts(written(tmp_path, "a", "a {}\n\nthe {} there\n")) == ("a {}", "the {} there")
    with pytest.raises(ExpungeError, match="where the concept"):
        contexts(written(tmp_path, "a", "a {}\na dog\n"))
    with pytest.raises(ExpungeError, match="no sentence in it"):
        contexts(written(tmp_path, "a", "\n"))
    with pytest.raises(ExpungeError, match="can't read it"):
        contexts(tmp_path / "none")


def test_replacements_become_one_concept_for_each_safe_word(tmp_path: Path) -> None:
    path = written(tmp_path, "a.json", '[["ghost", "man"], ["noto", "art"], ["spook", "man"]]')
    assert replacements(path).concepts("character") == (
        Concept(target="ghost", synonyms=["spook"], anchor="man", kind="character"),
        Concept(target="noto", anchor="art", kind="character"),
    )


def test_words_listed_twice_count_twice_in_released_programs_alone() -> None:
    (concept,) = Replacements((("ghost", "man"), ("ghost", "man")), dropped=0).concepts()
    assert concept.given == ("ghost", "ghost")
    assert concept.phrases == ("ghost",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ghost", "not a JSON file"),
        ('[["ghost", "man", "cat"]]', "not a list of .words to erase, safe words.: 0"),
        ('["ghost"]', "not a list of"),
        ('[[" ", "man"]]', "not a list of"),
        ("[]", "no pair in it"),
        ('[["sexual", "pupils"]]', "all 1 were dropped"),
    ],
)
def test_faulty_replacements_say_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ExpungeError, match=message):
        replacements(written(tmp_path, "a.json", text))
