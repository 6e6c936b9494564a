from pathlib import Path

import pytest

from expunge import Concept, ExpungeError, Policy


def test_a_policy_is_read_from_yaml(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(
        "erase:\n"
        "  - {target: santa claus, synonyms: father christmas, kind: character, anchor: man}\n"
        "  - {target: ink, kind: style, keep: [noto]}\n"
        "keep: [dog, cat, noto]\n"
    )
    policy = Policy.load(file)
    assert [c.phrases for c in policy.erase] == [("santa claus", "father christmas"), ("ink",)]
    assert policy.kept == ("dog", "cat", "noto")
    assert [c.replacement for c in policy.erase] == ["man", "art"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("erase: []", "erase: "),
        ("erase: [{target: ''}]", "erase.0.target: "),
        ("erase: [{target: x, colour: red}]", "erase.0.colour: Extra inputs"),
        ("erase: [{target: x, kind: mood}]", "erase.0.kind: "),
        ("erase: [{target: x, keep: [X]}]", "'X' is both erased and kept"),
        ("erase: [{target: x}, {target: X}]", "'X' is listed twice"),
        ("erase: [{target: x}]\nkeep: [x]", "'x' is both erased and kept"),
        ("erase: [{target: x, anchor: x}]", "the anchor 'x' is what is erased"),
        ("just words", "a policy is a mapping"),
        ("erase: [", "not a YAML file"),
    ],
)
def test_a_wrong_policy_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(text)
    with pytest.raises(ExpungeError) as caught:
        Policy.load(file)
    assert message in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_policy_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExpungeError, match="can't read the policy"):
        Policy.load(tmp_path / "none.yaml")


def test_no_concept_is_an_error() -> None:
    with pytest.raises(ExpungeError, match="no concept"):
        Policy.of([])


def test_pairs_keep_the_sentence_and_mark_where_the_words_end() -> None:
    concept = Concept(target="dog", synonyms=("hound",), anchor="cat")
    pairs = list(concept.pairs(("{}", "a {} in the rain")))
    assert [pair.erase for pair in pairs] == [
        "dog",
        "a dog in the rain",
        "hound",
        "a hound in the rain",
    ]
    assert pairs[1].anchor == "a cat in the rain"
    assert (pairs[1].erase_head, pairs[1].anchor_head) == ("a dog", "a cat")


def test_a_concepts_own_sentences_go_before_those_of_a_method() -> None:
    own, others = Concept(target="ink", contexts=("a {} drawing",)), Concept(target="dog")
    assert [pair.erase for pair in own.pairs(("one {}",))] == ["a ink drawing"]
    assert [pair.erase for pair in others.pairs(("one {}",))] == ["one dog"]
    assert others.sentences()[0] == "{}"


def test_what_a_concept_keeps_stands_in_its_sentences_alone() -> None:
    policy = Policy(
        erase=(
            Concept(target="ink", kind="style", keep=("noto",), contexts=("a {} drawing",)),
            Concept(target="dog", keep=("cat", "noto"), contexts=("one {}",)),
            Concept(target="cow", keep=("owl",)),
        ),
        keep=("plain",),
    )
    assert policy.kept_in(("some {}",)) == {
        "plain": ("a {} drawing", "one {}", "some {}"),
        "noto": ("a {} drawing", "one {}"),
        "cat": ("one {}",),
        "owl": ("some {}",),
    }
    assert policy.kept_prompts(("some {}",)) == (
        *("plain", "noto", "cat", "owl"),
        *("a plain drawing", "a noto drawing"),
        *("one plain", "one noto", "one cat"),
        *("some plain", "some owl"),
    )


def test_a_sentence_of_a_concept_has_one_place_for_its_words() -> None:
    with pytest.raises(ValueError, match="once, where the concept"):
        Concept(target="ink", contexts=("a drawing",))
