"""Prompt sets by name, tried with files of benign stand-ins in the published form."""

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from expunge.errors import ExpungeError
from expunge.prompts import PromptSet, Reading, published, published_set
from expunge.prompts.lexicon import refused
from expunge.prompts.published import Loaded, published_sets

OURS = [name for name, record in published_sets().items() if record.shipped]
SENSITIVE = [name for name, record in published_sets().items() if record.sensitive]


def written(folder: Path, text: str) -> Path:
    path = folder / "copy.csv"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", OURS)
def test_our_sets_are_what_their_records_say(name: str) -> None:
    loaded = published(name)
    assert len(loaded.record.sha256) == 64
    assert (loaded.rows_match, loaded.sha256_matches, loaded.notes) == (True, True, ())
    assert (loaded.prompts.dropped, loaded.prompts.source) == (0, name)
    assert loaded.record.licence == "Apache-2.0"
    pairs = {(row.prompt, row.seed) for row in loaded.prompts}
    assert len(pairs) == len(loaded.prompts), "a prompt is there twice with one seed"


def test_our_sets_are_those_that_are_promised() -> None:
    assert set(OURS) == {
        "expunge/objects",
        "expunge/artists",
        "expunge/scenes",
        "expunge/people",
    }
    classes = {row.extra["class"]: row.extra["class_index"] for row in published(OURS[0]).prompts}
    assert len(classes) == 10
    assert (classes["church"], classes["parachute"]) == ("497", "701")


def test_nothing_sensitive_is_shipped() -> None:
    assert {"i2p", "uda_seed_prompts", "rab_contrast_pairs", "p4d_transfer_151"} <= set(SENSITIVE)
    for name in SENSITIVE:
        assert published_set(name).needs_file
        assert published_set(name).grid is None
        with pytest.raises(ExpungeError, match="aren't shipped; give your copy"):
            published(name)


def test_pinned_counts_and_sums() -> None:
    pinned = {
        "i2p": (4703, "6c1821aeeb20beb2"),
        "uda_seed_prompts": (142, "0a40f6e63bca9765"),
        "rab_contrast_pairs": (79, "2bd9056f41d92b82"),
        "p4d_transfer_151": (151, "00180510fa371212"),
        "mma_1000": (1000, "0ad992fc65ad446e"),
        "coco_30k": (30000, "87a3f463164120ca"),
        "coco_30k_val": (3000, "418d22c428a29713"),
    }
    for name, record in published_sets().items():
        rows, digits = pinned.get(name, (record.rows, "" if not record.shipped else record.sha256))
        assert (record.rows, record.sha256) == (rows, digits), name


@pytest.mark.parametrize(
    ("seed", "guidance"),
    [("evaluation_seed", "evaluation_guidance"), ("sd_seed", "sd_guidance_scale")],
)
def test_i2p_is_read_with_both_spellings(tmp_path: Path, seed: str, guidance: str) -> None:
    text = (
        f",prompt,categories,nudity_percentage,{seed},{guidance}\n"
        "0,a dog,violence,0,7,7.5\n1,,violence,0,8,7\n2,a child,sexual,0,9,7\n3,a cat,hate,0,10,8\n"
    )
    loaded = published("i2p", written(tmp_path, text))
    rows = [(row.case_number, row.prompt, row.seed, row.guidance_scale) for row in loaded.prompts]
    assert rows == [("0", "a dog", 7, 7.5), ("3", "a cat", 10, 8.0)]
    assert (loaded.rows, loaded.prompts.dropped, loaded.prompts.blank) == (4, 1, 1)


def test_a_mismatch_is_a_note_and_a_wrong_column_an_error(tmp_path: Path) -> None:
    text = "case_number,prompt,evaluation_seed\n0,a dog,1\n"
    loaded = published("coco_30k", written(tmp_path, text))
    digits = sha256(text.encode()).hexdigest()[:16]
    assert (loaded.rows_match, loaded.sha256_matches) == (False, False)
    assert loaded.notes == (
        "1 rows, but the published set has 30000",
        f"its SHA-256 begins with {digits}, the published file's with 87a3f463164120ca",
    )
    with pytest.raises(ExpungeError, match="no column class, so it isn't imagenette"):
        published("imagenette", written(tmp_path, text))


def test_a_match_by_the_first_digits(tmp_path: Path) -> None:
    path = written(tmp_path, "case_number,prompt,evaluation_seed\n0,a dog,1\n")
    prompts = PromptSet.load(path)
    record = published_set("coco_30k").model_copy(update={"rows": 1, "sha256": prompts.sha256[:16]})
    assert Loaded(record, prompts).notes == ()
    assert Loaded(record, prompts).sha256_matches
    assert Loaded(record, replace(prompts, sha256="0" * 64)).sha256_matches is False
    unpinned = record.model_copy(update={"sha256": ""})
    assert Loaded(unpinned, prompts).sha256_matches is None


def test_pairs_pass_the_lexicon_whatever_their_words(tmp_path: Path) -> None:
    text = (
        "sensitive prompt,normal prompt\n"
        "a red wall,a wall\na kid on a swing,a swing\na red door, a door \n"
    )
    loaded = published("rab_contrast_pairs", written(tmp_path, text))
    assert loaded.pairs() == (("a red wall", "a wall"), ("a red door", "a door"))
    assert [row.case_number for row in loaded.prompts] == ["0", "2"]
    assert loaded.prompts.dropped == 1
    with pytest.raises(ExpungeError, match="the pair 0 has no normal prompt"):
        published(
            "rab_contrast_pairs", written(tmp_path, "sensitive prompt,normal prompt\na wall,\n")
        ).pairs()
    with pytest.raises(ExpungeError, match="no column sensitive prompt"):
        published("rab_contrast_pairs", written(tmp_path, "prompt,seed\na wall,1\n"))
    with pytest.raises(ExpungeError, match="holds single prompts"):
        published("expunge/scenes").pairs()


@pytest.mark.parametrize("name", [name for name in SENSITIVE if name != "i2p"])
def test_in_sensitive_sets_a_word_for_minors_is_enough(name: str, tmp_path: Path) -> None:
    record = published_set(name)
    cells = dict.fromkeys((*record.columns, "case_number", "evaluation_seed"), "1")
    texts = [cells | {record.reading.prompt: words} for words in ("a school child", "a red wall")]
    lines = [",".join(cells), *(",".join(row.values()) for row in texts)]
    lines[2] = lines[2].replace("1", "2")
    assert not refused(texts[0])
    loaded = published(name, written(tmp_path, "\n".join(lines) + "\n"))
    assert [row.prompt for row in loaded.prompts] == ["a red wall"]
    assert loaded.prompts.dropped == 1


def test_a_reading_gives_what_the_file_lacks(tmp_path: Path) -> None:
    text = "target_prompt,adv_prompt\na wall,a wxll\n\na door,a dxxr\n"
    loaded = published("mma_1000", written(tmp_path, text))
    assert [(row.case_number, row.prompt, row.seed) for row in loaded.prompts] == [
        ("0", "a wxll", 42),
        ("1", "a dxxr", 42),
    ]
    assert loaded.prompts.rows[0].extra["target_prompt"] == "a wall"


def test_a_column_goes_before_what_the_reading_gives(tmp_path: Path) -> None:
    path = written(tmp_path, "case_number,prompt,seed\n7,a dog,3\n")
    row = PromptSet.load(path, Reading(seed=42, numbered=True)).rows[0]
    assert (row.case_number, row.seed) == ("7", 3)
    with pytest.raises(ExpungeError, match="row 2: prompt ''"):
        PromptSet.load(written(tmp_path, "prompt,note\n,x\n"), Reading(seed=1, numbered=True))


def test_cifar10_is_made_from_its_template() -> None:
    loaded = published("mace_cifar10")
    assert (loaded.rows, loaded.notes, loaded.sha256_matches) == (2000, (), None)
    first, last = loaded.prompts.rows[0], loaded.prompts.rows[-1]
    assert (first.prompt, first.seed) == ("a photo of the airplane", 0)
    assert (last.prompt, last.seed, last.case_number) == ("a photo of the truck", 199, "1999")
    assert last.extra["class"] == "truck"


def test_unlearncanvas_is_made_from_your_names(tmp_path: Path) -> None:
    names = tmp_path / "names.yaml"
    names.write_text("style: [Ink, Mosaic]\nobject: [Bears, Trees]\n")
    loaded = published("unlearncanvas", names)
    assert loaded.notes == ("20 rows, but the published set has 5100",)
    assert [(row.prompt, row.seed) for row in loaded.prompts.rows[4:6]] == [
        ("An Bears image in Ink style.", 888),
        ("An Trees image in Ink style.", 188),
    ]
    assert loaded.prompts.rows[-1].extra == {"style": "Mosaic", "object": "Trees"}
    names.write_text("\n".join(["style:", *(f"- s{n}" for n in range(51)), "object:"]))
    with names.open("a") as file:
        file.write("".join(f"\n- o{n}" for n in range(20)))
    assert published("unlearncanvas", names).rows_match


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("style: [Ink]\n", "no names for object"),
        ("style: [Ink]\nobject: [Bears]\nmood: [calm]\n", "mood stands in no template"),
        ("style: []\nobject: [Bears]\n", "a list of names for each slot: style"),
        ("- Ink\n", "a list of names for each slot"),
        ("style: [\n", "not a YAML file"),
        ("style: [nsfw]\nobject: [child]\n", "all 5 were dropped by the lexicon"),
    ],
)
def test_faulty_names(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "names.yaml").write_text(text)
    with pytest.raises(ExpungeError, match=message):
        published("unlearncanvas", tmp_path / "names.yaml")
    with pytest.raises(ExpungeError, match="give a YAML file of its names"):
        published("unlearncanvas")


def test_an_unknown_set_gets_near_names() -> None:
    with pytest.raises(ExpungeError, match="unknown prompt set 'coco30k'; did you mean coco_30k"):
        published("coco30k")


def test_a_malformed_file_is_refused_with_its_row(tmp_path: Path) -> None:
    text = "case_number,prompt,evaluation_seed,class\n0,a big, red church,1,church\n"
    with pytest.raises(ExpungeError, match="row 2: 5 fields, the header has 4"):
        published("robust_imagenette", written(tmp_path, text))
