"""The prompts of the emoji suite: what is asked of which group, and what never is."""

import pytest

import made_up
from expunge.concepts import Concept
from expunge.errors import ExpungeError
from expunge.evaluation.suites.emoji import SIZES, find, plan
from expunge.models.emoji import catalog
from made_up import INK, SANTA


def names(asked, role=None):
    return [group.name for group in (asked.of_role(role) if role else asked.groups)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("concept", [SANTA, INK])
def test_every_picture_is_asked_for_once(size, concept):
    shots = plan(concept, size=size).shots
    assert len({shot.number for shot in shots}) == len(shots)
    assert len({(shot.prompt.text, shot.seed) for shot in shots}) == len(shots)


@pytest.mark.parametrize("size", SIZES)
def test_a_character_has_all_its_groups_and_a_style_its_own(size):
    character, style = plan(SANTA, size=size), plan(INK, size=size)
    assert names(character, "efficacy") == ["explicit", "synonyms", "implicit"]
    assert names(character, "retention") == ["neighbours", "other objects"]
    assert names(style) == ["explicit", "other styles"]


@pytest.mark.parametrize("concept", [SANTA, INK])
def test_kept_prompts_never_ask_for_what_is_erased(concept):
    both = (SANTA, INK)
    for group in plan(concept, erased=both, size="full").of_role("retention"):
        asked = [set(prompt.expected.values()) for prompt in group.prompts]
        assert not any(labels & {"santa claus", "ink"} for labels in asked)


def test_the_full_suite_covers_the_whole_vocabulary():
    known = catalog()
    asked = plan(SANTA, size="full")
    pairs = {tuple(p.expected.values()) for group in asked.groups for p in group.prompts}
    assert len(pairs) == len(known.objects) * len(known.styles)
    assert asked.seeds == (0, 1, 2, 3, 4)


def test_base_pictures_are_shared_between_concepts():
    first, second = ({shot.number for shot in plan(one).shots} for one in (SANTA, INK))
    (kept,) = plan(INK).of_role("retention")
    assert len(first & second) >= len(kept.prompts) - 3  # Santa Claus and his two neighbours


def test_prompts_differ_in_their_noise():
    shots = plan(SANTA).shots
    assert len({shot.seed for shot in shots}) == len(shots)


@pytest.mark.parametrize(
    ("words", "kind", "found"),
    [
        ("santa claus", "character", ("object", "santa claus")),
        ("Father Christmas", "object", ("object", "santa claus")),
        ("ink", "style", ("style", "ink")),
        ("ink style", "object", ("style", "ink")),
        ("Santa  Claus", "object", ("object", "santa claus")),
        ("santa\u200b claus", "character", ("object", "santa claus")),
        ("Ink", "style", ("style", "ink")),
        ("ＩＮＫ\tstyle", "style", ("style", "ink")),
    ],
)
def test_a_concept_is_found_by_any_of_its_words(words, kind, found):
    assert find(Concept(target=words, kind=kind)) == found


def test_what_the_model_never_learned_is_refused_with_near_names():
    with pytest.raises(ExpungeError, match="did you mean santa claus"):
        plan(Concept(target="santa klaus"))
    with pytest.raises(ExpungeError, match="van gogh"):
        plan(Concept(target="van gogh", kind="style"))
    with pytest.raises(ExpungeError, match="brief, quick, full"):
        plan(SANTA, size="huge")


def texts(asked, group):
    return [p.text for one in asked.groups if one.name == group for p in one.prompts]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("concept", [SANTA, INK])
def test_the_policys_own_synonyms_are_drawn(size, concept):
    words = ("Big Red Man", "the man who brings gifts at christmas")
    own = concept.model_copy(update={"synonyms": words})
    asked = plan(own, size=size)
    assert not asked.unasked()
    assert not asked.unasked("synonyms")[1:]
    drawn = texts(asked, "synonyms")
    assert all(any(one.lower() in text for text in drawn) for one in words)
    expected = {tuple(p.expected.values())[concept is INK] for p in asked.groups[1].prompts}
    assert expected == {concept.target}
    assert plan(concept, size=size).unasked() == ()


def test_what_a_synonym_names_isnt_kept():
    asked = plan(SANTA.model_copy(update={"synonyms": ("mrs claus",)}), size="full")
    kept = [p for group in asked.of_role("retention") for p in group.prompts]
    assert "mrs claus" not in {p.expected["object"] for p in kept}
    assert any("mrs claus" in text for text in texts(asked, "synonyms"))


def test_a_synonym_is_known_however_it_is_spelt():
    plain, odd = (
        plan(Concept(target=target, synonyms=synonyms), size="full")
        for target, synonyms in (
            ("santa claus", ("mrs claus", "santa")),
            ("Santa  Claus", ("Mrs  Claus", "SANTA")),
        )
    )
    assert (odd.groups, odd.notes[0]) == (plain.groups, plain.notes[0])


def test_pictures_of_the_unsafe_group_are_sensitive():
    bomb = plan(Concept(target="bomb", kind="unsafe"))
    assert all(p.sensitive for group in bomb.of_role("efficacy") for p in group.prompts)
    assert not any(p.sensitive for group in plan(SANTA).of_role("efficacy") for p in group.prompts)


def test_the_notes_say_which_wordings_the_edit_was_given():
    assert "was given santa;" in plan(SANTA).notes[0]
    assert "not measured" in plan(made_up.INK).notes[0]
