"""What the suites for any model ask, and who they let look."""

from pathlib import Path

import pytest

import toy_judges
from expunge.concepts import Concept
from expunge.errors import ExpungeError
from expunge.evaluation.suite import Options, Plan
from expunge.evaluation.suites import artists, coco, objects, people, unsafe
from expunge.evaluation.suites.worded import CAPTIONS, LISTED, SIZES

CHURCH = Concept(target="church", synonyms=("chapel",), keep=("parachute",))
NUDITY = Concept(target="nudity", kind="unsafe")


@pytest.fixture(autouse=True)
def judges(monkeypatch):
    toy_judges.register(monkeypatch)


def csv(folder: Path, *rows: str, head: str = "prompt,evaluation_seed,class") -> str:
    path = folder / "list.csv"
    path.write_text("\n".join((head, *rows)) + "\n")
    return str(path)


def texts(plan: Plan, group: str) -> list[str]:
    (found,) = (one for one in plan.groups if one.name == group)
    return [prompt.text for prompt in found.prompts]


def expected(plan: Plan, group: str) -> set[str | None]:
    (found,) = (one for one in plan.groups if one.name == group)
    return {prompt.expected.get(plan.attribute) for prompt in found.prompts}


# --- objects


def test_objects_asks_by_name_by_synonym_and_for_what_stays():
    plan = objects.plan(CHURCH, erased=(CHURCH,), size="quick")
    assert [(group.name, group.role) for group in plan.groups] == [
        ("explicit", "efficacy"),
        ("synonyms", "efficacy"),
        ("other objects", "retention"),
        (CAPTIONS, "retention"),
    ]
    assert texts(plan, "explicit")[0] == "a photo of a church"
    assert all("chapel" in text for text in texts(plan, "synonyms"))
    assert expected(plan, "explicit") == expected(plan, "synonyms") == {"church"}
    assert expected(plan, CAPTIONS) == {None}
    assert len(plan.shots) == sum(len(group.prompts) for group in plan.groups) * 2


SPELT = ("Caf\u00e9  Noir", "cafe\u0301 noir", "CAFE\u0301 NOIR")
"""One name with a composed or a decomposed letter, capitals, and two spaces."""


@pytest.mark.parametrize("target", SPELT)
def test_a_name_is_one_label_however_it_is_spelt(target: str, tmp_path: Path) -> None:
    concept = Concept(target=target, keep=("Beagle  Pup", "beagle pup"))
    rows = [f"a row of {number},{number},{name}" for number, name in enumerate((*SPELT, "fox"))]
    plan = objects.plan(concept, options=Options(prompts=csv(tmp_path, *rows)))
    assert plan.label == "caf\u00e9 noir"
    assert expected(plan, "explicit") == expected(plan, LISTED) == {plan.label}
    assert len(texts(plan, LISTED)) == len(SPELT)
    assert expected(plan, "listed others") == {"fox"}
    assert [one for one in texts(plan, "other objects") if "pup" in one.lower()] == [
        one for one in texts(plan, "other objects") if "Beagle  Pup" in one
    ]
    assert "beagle pup" in expected(plan, "other objects")
    assert coco.plan(concept).label == plan.label


def test_a_copy_of_a_plan_with_other_seeds_has_other_shots():
    plan = objects.plan(CHURCH, erased=(CHURCH,), size="quick")
    assert {shot.seed for shot in plan.shots} == {shot.seed for shot in plan.model_copy().shots}
    other = plan.model_copy(update={"seeds": (7,)})
    assert len(other.shots) * len(plan.seeds) == len(plan.shots)
    assert plan.model_copy() == plan


def test_what_the_policy_keeps_comes_first_and_nothing_erased_is_kept():
    tench = Concept(target="tench", keep=("beagle",))
    plan = objects.plan(CHURCH, erased=(CHURCH, tench), size="brief")
    kept = texts(plan, "other objects")
    assert kept[:2] == ["a photo of a parachute", "a photo of a beagle"]
    assert not expected(plan, "other objects") & {"church", "chapel", "tench"}


def test_names_to_keep_that_are_too_many_for_the_size_are_told():
    many = Concept(target="church", keep=tuple(toy_judges.Things.labels[2:]))
    plan = objects.plan(many, size="brief")
    assert len(texts(plan, "other objects")) == 5
    assert plan.notes == ("Of the 9 things that the policy keeps, only 5 were asked for.",)


@pytest.mark.parametrize("words", ["bicycle", "Bench"])
def test_no_everyday_scene_names_what_is_erased(words):
    plan = objects.plan(Concept(target=words), size="brief")
    scenes = texts(plan, CAPTIONS)
    assert len(scenes) == SIZES["brief"].captions
    assert not [text for text in scenes if words.lower() in text.lower()]


def test_captions_that_name_what_is_erased_are_left_out_and_counted(tmp_path):
    given = csv(tmp_path, "Two churches,1,", "A churchill tank,2,", "A tree,3,")
    plan = objects.plan(CHURCH, size="brief", options=Options(captions=given))
    assert texts(plan, CAPTIONS) == ["A churchill tank", "A tree"]
    assert plan.notes[0].endswith("name what is erased, and were left out: 1.")
    given = csv(tmp_path, "A church,1,")
    with pytest.raises(ExpungeError, match="every caption names what is erased"):
        objects.plan(CHURCH, size="brief", options=Options(captions=given))


def test_a_list_with_a_column_of_classes_is_divided(tmp_path):
    rows = ("a tower,7,Church", "an old one,8,chapel", "a fish,9,tench", "a dog,10,beagle")
    given = Options(prompts=csv(tmp_path, *rows))
    tench = Concept(target="tench")
    plan = objects.plan(CHURCH, erased=(CHURCH, tench), size="quick", options=given)
    assert texts(plan, "listed") == ["a tower", "an old one"]
    assert expected(plan, "listed") == {"church"}
    assert texts(plan, "listed others") == ["a dog"]
    assert expected(plan, "listed others") == {"beagle"}
    assert "4 rows, of which 2 ask for church" in plan.notes[0]


def test_a_list_decides_its_own_seeds_guidance_and_size_and_a_row_is_one_picture(tmp_path):
    head = "prompt,sd_seed,sd_guidance_scale,sd_image_width,sd_image_height"
    given = csv(tmp_path, "a tower,7,3.5,24,16", "a tower,8,,,", head=head)
    plan = objects.plan(CHURCH, size="full", options=Options(prompts=given))
    first, second = [shot for shot in plan.shots if shot.group == "listed"]
    assert (first.seed, second.seed) == (7, 8)
    own = first.prompt
    assert (own.guidance_scale, own.width, own.height) == (3.5, 24, 16)
    assert (second.prompt.guidance_scale, second.prompt.width) == (None, None)


@pytest.mark.parametrize(
    ("rows", "head", "message"),
    [
        ((), "prompt,evaluation_seed", "no prompt in it"),
        (("a tower,1",), "text,evaluation_seed", "no column prompt"),
        (("a tower",), "prompt", "no column evaluation_seed or sd_seed or seed"),
        (("a tower,1,tench",), "prompt,seed,class", "no row whose class is 'church'; it has tench"),
        (("a,1,church", "b,2,"), "prompt,seed,class", "the class of 'b' is empty"),
    ],
)
def test_a_list_that_asks_nothing_is_refused(tmp_path, rows, head, message):
    given = Options(prompts=csv(tmp_path, *rows, head=head))
    with pytest.raises(ExpungeError, match=message):
        objects.plan(CHURCH, options=given)


def test_an_unknown_size_is_named():
    with pytest.raises(ExpungeError, match="unknown size 'huge'; choose brief, quick, full"):
        objects.plan(CHURCH, size="huge")


@pytest.mark.parametrize("suite", [objects, artists, people, coco])
def test_options_without_use_are_refused(suite):
    with pytest.raises(ExpungeError, match="suite has no use for protocols"):
        suite.plan(CHURCH, options=Options(protocols=("nudity/mace",)))
    with pytest.raises(ExpungeError, match="the coco suite has no use for prompts"):
        coco.plan(CHURCH, options=Options(prompts="list.csv"))


# --- who looks


def test_the_judge_of_objects_has_the_names_of_the_plan():
    plan = objects.plan(Concept(target="Church"))
    judge = objects.judge(Options(), [plan])
    assert judge.names["church, church building"] == "church"


def test_a_name_that_the_classifier_does_not_know_is_told():
    with pytest.raises(ExpungeError, match="things can't tell 'violin' among church"):
        objects.judge(Options(), [objects.plan(Concept(target="violin"))])
    keeps = Concept(target="church", keep=("harp",))
    with pytest.raises(ExpungeError, match="can't tell 'harp'"):
        objects.judge(Options(), [objects.plan(keeps)])


def test_two_names_of_one_class_are_never_told_apart_in_silence():
    pump = Concept(target="petrol pump")  # and "gas pump" is one of the ten that stay
    with pytest.raises(ExpungeError, match="one class for 'petrol pump' and 'gas pump'"):
        objects.judge(Options(), [objects.plan(pump, erased=(pump,))])
    both = Concept(target="petrol pump", synonyms=("gas pump",))
    judge = objects.judge(Options(), [objects.plan(both, erased=(both,))])
    assert judge.names["gas pump, gasoline pump, petrol pump"] == "petrol pump"


def test_every_class_of_a_concept_counts_as_the_concept():
    dog = Concept(target="dog", synonyms=("beagle", "English springer"))
    judge = objects.judge(Options(), [objects.plan(dog, erased=(dog,))])
    assert judge.names["beagle"] == judge.names["English springer"] == "dog"


def test_a_clip_chooses_among_the_names_of_the_plans():
    plan = artists.plan(Concept(target="Ada", kind="style", keep=("bob",)))
    judge = artists.judge(Options(judge="clip:folder"), [plan])
    assert judge.looks.labels == ("ada", "bob")


@pytest.mark.parametrize(
    ("suite", "chosen", "message"),
    [
        (artists, "", "who tells artists apart"),
        (people, "", "who is who"),
        (people, "things", "who is who"),
        (objects, "nudenet", "nudenet is no classifier, so it can't tell 'church'"),
        (objects, "thinks", "unknown detector 'thinks'; did you mean things"),
        (unsafe, "things", "it doesn't tell what is unsafe"),
    ],
)
def test_a_judge_of_the_wrong_kind_is_refused(suite, chosen, message):
    plan = suite.plan(Concept(target="church"))
    with pytest.raises(ExpungeError, match=message):
        suite.judge(Options(judge=chosen), [plan])


# --- people


def test_a_face_is_expected_wherever_a_person_is():
    plan = people.plan(Concept(target="Ada", kind="character", keep=("Bob",)), size="brief")
    for group in plan.groups:
        faces = {prompt.expected.get("face") for prompt in group.prompts}
        assert faces == ({None} if group.name == CAPTIONS else {"face"})


# --- unsafe


def test_unsafe_prompts_are_sensitive_and_scenes_are_not():
    plan = unsafe.plan(NUDITY)
    for group in plan.groups:
        assert {p.sensitive for p in group.prompts} == {group.role == "efficacy"}
    assert expected(plan, "explicit") == {"unsafe"}
    assert expected(plan, CAPTIONS) == {"nothing unsafe"}


def test_a_list_replaces_the_concepts_words_and_refused_rows_are_counted(tmp_path):
    given = csv(tmp_path, "a tree,1", "a girl on a bench,2", head="prompt,sd_seed")
    plan = unsafe.plan(NUDITY, options=Options(prompts=given))
    assert texts(plan, "listed") == ["a tree"]
    assert all(prompt.sensitive for prompt in plan.groups[0].prompts)
    assert plan.notes[-1].startswith("Rows of list.csv that were dropped")
    assert plan.notes[-1].endswith(": 1.")


@pytest.mark.parametrize(
    ("judge", "protocol", "message"),
    [
        ("safety", "nudity/mace", "safety gives no detections to count"),
        ("nudenet", "nudity/maze", "unknown protocol 'nudity/maze'; did you mean"),
        ("nudenet", "quality/fid-real", "isn't counted from detections"),
        ("nudenet", "nudity/sld", "it counts 'unsafe', and nudenet doesn't look for that"),
    ],
)
def test_a_protocol_that_cannot_count_is_refused_before_anything_is_drawn(judge, protocol, message):
    given = Options(judge=judge, protocols=(protocol,))
    with pytest.raises(ExpungeError, match=message):
        unsafe.judge(given, [unsafe.plan(NUDITY)])


# --- coco


def test_coco_asks_nothing_of_what_was_erased():
    plan = coco.plan(CHURCH)
    assert [(group.name, group.role) for group in plan.groups] == [("captions", "retention")]


def test_coco_takes_captions_as_they_are_published(tmp_path):
    plan = coco.plan(CHURCH, options=Options(captions=csv(tmp_path, "A church,1,", "A tree,2,")))
    assert texts(plan, "captions") == ["A church", "A tree"]


# --- every suite


@pytest.mark.parametrize("suite", [objects, artists, people, unsafe, coco])
def test_every_word_for_the_concept_is_drawn_or_told_to_be_missing(suite, tmp_path):
    concept = Concept(target="ghost", synonyms=("Big Red Man",))
    plan = suite.plan(concept, size="brief")
    if suite is coco:
        assert plan.unasked() == concept.phrases
        return
    assert plan.unasked() == ()
    assert plan.unasked("synonyms") == ("ghost",)
    assert all("Big Red Man" in text for text in texts(plan, "synonyms"))


def test_a_list_that_names_no_synonym_leaves_it_unasked(tmp_path):
    concept = Concept(target="nudity", synonyms=("bare skin", "art"), kind="unsafe")
    given = csv(tmp_path, "Nudity of a statue,1", "a party hat,2", head="prompt,sd_seed")
    plan = unsafe.plan(concept, options=Options(prompts=given))
    assert plan.unasked() == ("bare skin", "art")
