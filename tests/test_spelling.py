"""The same words, however they are written, and sentences around them."""

import ast
from pathlib import Path

import pytest

import expunge
from expunge import Concept, ExpungeError, Policy
from expunge.sentences import beginning, fill
from expunge.spelling import distinct, names, spelling

SAME = (
    "Santa  Claus", "santa\u00a0claus", "santa\tclaus", "SANTA CLAUS", "santa\u3000claus",
    "\uff53anta claus", "santa clau\u200bs", "\ufeffsanta claus",
    "santa claus\u2009", "san\u00adta claus",
)  # fmt: skip


@pytest.mark.parametrize("words", SAME, ids=ascii)
def test_words_that_differ_by_white_space_or_unicode_forms_are_the_same(words: str) -> None:
    assert spelling(words) == "santa claus"


def test_accents_in_one_or_two_characters_are_the_same_and_none_is_another_word() -> None:
    assert spelling("Beb\u00e9") == spelling("bebe\u0301") != spelling("bebe")
    assert spelling("STRASSE") == spelling("stra\u00dfe")


def test_distinct_words_stay_as_the_first_was_written() -> None:
    assert distinct(["Dog", "cat", "dog ", "a  dog"]) == ("Dog", "cat", "a  dog")


@pytest.mark.parametrize("words", SAME, ids=ascii)
def test_the_same_words_cannot_be_erased_and_kept(words: str) -> None:
    erased = Concept(target="santa claus", synonyms=("st nick",))
    with pytest.raises(ValueError, match="both erased and kept; remove one of the two"):
        Policy(erase=(erased,), keep=(words,))
    with pytest.raises(ValueError, match="both erased and kept"):
        Concept(target="st nick", synonyms=("santa claus",), keep=(words,))
    with pytest.raises(ValueError, match="is what is erased"):
        Concept(target="santa claus", anchor=words)
    with pytest.raises(ValueError, match="is listed twice"):
        Policy(erase=(erased, Concept(target=words)))
    with pytest.raises(ValueError, match="is listed twice"):
        Policy(erase=(erased, Concept(target="elf", synonyms=(words,))))


def test_a_full_stop_makes_another_prompt() -> None:
    policy = Policy(erase=(Concept(target="santa claus"),), keep=("santa claus.",))
    assert policy.kept == ("santa claus.",)


def test_a_phrase_of_two_concepts_is_refused_with_both_anchors() -> None:
    one, two = (
        Concept(target=words, synonyms=("santa",), anchor=anchor)
        for words, anchor in (("santa claus", "robot"), ("ghost", "snowman"))
    )
    with pytest.raises(ExpungeError, match=r"'santa' is listed twice, .*'robot'.*'snowman'"):
        Policy.of([one, two])


def test_a_policy_must_not_draw_what_it_erases() -> None:
    ghost, robot = Concept(target="ghost", anchor="Robot"), Concept(target="robot")
    for order in ((ghost, robot), (robot, ghost)):
        with pytest.raises(ExpungeError, match="'Robot' takes the place of 'ghost', and is erased"):
            Policy.of(order)
    with pytest.raises(ExpungeError, match="'art' takes the place of 'ink'"):
        Policy.of([Concept(target="ink", kind="style"), Concept(target="art")])


def test_equal_synonyms_count_once() -> None:
    concept = Concept(target="ghost", synonyms=("Ghost", "spook", "sp\u00a0ook", "spook "))
    assert concept.phrases == ("ghost", "spook", "sp\u00a0ook")
    assert len(list(concept.pairs(("{}",)))) == 3


def test_words_that_nobody_can_see_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing that can be seen"):
        Concept(target="\u200b")


def test_a_name_is_found_as_whole_words() -> None:
    assert names("an Art  deco hat", ["art deco"])
    assert not names("a party hat", ["art"])
    assert names("two dogs", ["dog"], plural=True)
    assert not names("two dogs", ["dog"])


SENTENCES = {
    "a {red|blue} {} on a table": "a {red|blue} ghost on a table",
    "a {{}} on grass": "a {ghost} on grass",
    "{} beside {x}": "ghost beside {x}",
    "{} {": "ghost {",
    "{} {0.__class__}": "ghost {0.__class__}",
    "} {} {0}": "} ghost {0}",
}


@pytest.mark.parametrize(("sentence", "prompt"), SENTENCES.items())
def test_only_the_place_is_replaced_and_other_braces_are_text(sentence: str, prompt: str) -> None:
    concept = Concept(target="ghost", contexts=(sentence,), keep=("dog",))
    [pair] = concept.pairs()
    assert pair.erase == prompt
    assert pair.erase_head == beginning(sentence) + "ghost"
    kept = Policy(erase=(concept,)).kept_prompts()
    assert kept == ("dog", prompt.replace("ghost", "dog"))


def test_words_with_braces_stay_as_they_are() -> None:
    assert fill("a {} here", "{} or {x}") == "a {} or {x} here"


def test_a_sentence_without_a_place_is_an_error() -> None:
    with pytest.raises(ExpungeError, match=r"has no \{\}"):
        fill("a dog", "ghost")


def test_no_sentence_is_filled_in_by_str_format() -> None:
    """It would read braces in people's prompts; named places of our own texts are safe."""
    for file in Path(expunge.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in ("format", "format_map")
                and node.args
            ):
                assert ast.unparse(node.func.value).isupper() or "USES" in ast.unparse(node), file
