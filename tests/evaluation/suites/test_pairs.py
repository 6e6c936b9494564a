"""Two things side by side: what is asked, and which half counts for what."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from expunge import erase
from expunge.concepts import Concept, Policy
from expunge.errors import ExpungeError
from expunge.evaluation.audit import audit
from expunge.evaluation.bench import Bench, Cell, run, running
from expunge.evaluation.evaluate import evaluate
from expunge.evaluation.suite import NO_OPTIONS, Judgement, Plan, Prompt
from expunge.evaluation.suites.emoji import EmojiJudge
from expunge.evaluation.suites.pairs import (
    BESIDE,
    OTHER_PAIRS,
    SIZES,
    SUITE,
    PairsPlanSize,
    halves,
    plan,
)
from expunge.generation import Sampler
from expunge.models import Model
from expunge.models.emoji import catalog
from expunge.models.emoji.vocabulary import paired
from made_up import INK, SANTA

DRAWINGS = Path(__file__).parents[2] / "detectors" / "drawings"
PIZZA = Concept(target="pizza")
ONE_STEP = Sampler(steps=1)
DRAWN, KEPT, STYLED = "santa claus.noto", "umbrella.noto", "skull.ink"


def drawing(name: str) -> Image.Image:
    return Image.open(DRAWINGS / f"{name}.png").convert("RGB")


def side_by_side(left: str, right: str) -> Image.Image:
    whole = Image.new("RGB", (128, 64), "white")
    whole.paste(drawing(left), (0, 0))
    whole.paste(drawing(right), (64, 0))
    return whole


def asked(left: str, right: str, concept: str) -> Prompt:
    """The prompt for two things, about one of them."""
    (beside,) = {left, right} - {concept}
    return Prompt(
        text=f"a {left} and a {right}, noto style",
        expected={"object": concept, "beside": beside, "style": "noto"},
    )


def read(prompt: Prompt, left: str, right: str, *erased: Concept) -> Judgement:
    judge = SUITE.judge(NO_OPTIONS, [plan(one, size="brief") for one in erased])
    (seen,) = judge.judge([side_by_side(left, right)], [prompt.text])
    return judge.read(seen, prompt)


def group(asked: Plan, name: str) -> Sequence[Prompt]:
    (found,) = (one for one in asked.groups if one.name == name)
    return found.prompts


# --- what is asked


@pytest.mark.parametrize("size", SIZES)
def test_the_concept_is_named_first_as_often_as_second(size: str) -> None:
    prompts = group(plan(SANTA, size=size), BESIDE)
    first = [one for one in prompts if one.text.startswith("a santa claus and a ")]
    second = [one for one in prompts if " and a santa claus, " in one.text]
    assert len(first) == len(second) == len(prompts) / 2
    beside, again = ([one.expected["beside"] for one in order] for order in (first, second))
    assert beside == again
    assert "santa claus" not in beside


def test_the_full_size_covers_the_vocabulary_and_every_picture_is_asked_for_once() -> None:
    full = plan(SANTA, size="full")
    known = {entry.name for entry in catalog().objects}
    for prompts in (group(full, BESIDE), group(full, OTHER_PAIRS)):
        assert {one.expected["beside"] for one in prompts} == known - {"santa claus"}
    assert len({shot.number for shot in full.shots}) == len(full.shots)


def test_pairs_are_twice_as_wide_and_hold_two_kept_things() -> None:
    quick = plan(PIZZA, erased=(PIZZA, SANTA, INK))
    prompts = [one for group in quick.groups for one in group.prompts]
    assert {(one.height, one.width) for one in prompts} == {(64, 128)}
    assert not any(gone in one.text for one in prompts for gone in ("santa", "ink"))
    for one in group(quick, OTHER_PAIRS):
        assert len({"pizza", one.expected["object"], one.expected["beside"]}) == 3


def test_every_caption_for_one_thing_has_one_for_two() -> None:
    for template in catalog().templates:
        both = paired(template)
        assert both.count("a {first} and a {second}") == 1
        assert "{object}" not in both
        assert "a a " not in both


def test_what_is_no_thing_is_refused() -> None:
    with pytest.raises(ExpungeError, match=r"'ink' is a style; the emoji suite measures styles"):
        plan(INK)
    with pytest.raises(
        ExpungeError, match=r"can't measure 'teapot', which the model never learned"
    ):
        plan(Concept(target="teapot"))
    with pytest.raises(ExpungeError, match="unknown size 'huge'; choose brief, quick, full"):
        plan(SANTA, size="huge")


# --- who looks where


@pytest.mark.parametrize("concept_first", [True, False])
def test_the_kept_half_is_told_from_the_half_of_the_concept(concept_first: bool) -> None:
    order = ("santa claus", "umbrella") if concept_first else ("umbrella", "santa claus")
    shown = (DRAWN, KEPT) if concept_first else (KEPT, DRAWN)
    prompt = asked(*order, "santa claus")
    seen = read(prompt, *shown, SANTA)
    assert seen.labels == prompt.expected
    assert seen.score("object", "santa claus") == seen.confidences["object"] > 0.5
    replaced = ("bomb.twemoji", KEPT) if concept_first else (KEPT, "bomb.twemoji")
    assert read(prompt, *replaced, SANTA).labels == {**prompt.expected, "object": "bomb"}
    lost = (DRAWN, STYLED) if concept_first else (STYLED, DRAWN)
    assert read(prompt, *lost, SANTA).labels == {
        "object": "santa claus",
        "beside": "skull",
        "style": "ink",
    }


def test_what_is_erased_counts_in_either_half_and_what_is_kept_in_its_own() -> None:
    prompt = asked("santa claus", "umbrella", "santa claus")
    moved = (KEPT, DRAWN)
    assert read(prompt, *moved, SANTA).labels["object"] == "santa claus"
    assert read(prompt, *moved, SANTA).labels["beside"] == "santa claus"
    assert read(prompt, *moved, PIZZA).labels["object"] == "umbrella"


def test_each_half_is_what_the_emoji_judge_says_of_it_alone() -> None:
    judge = SUITE.judge(NO_OPTIONS, [plan(SANTA, size="brief")])
    pair, alone = side_by_side(DRAWN, STYLED), EmojiJudge()
    (seen,) = judge.judge([pair], ["two things"])
    for side, name in (("left", DRAWN), ("right", STYLED)):
        (expected,) = alone.judge([drawing(name)], [""])
        assert seen.labels[f"{side} object"] == expected.labels["object"]
        assert seen.labels[f"{side} style"] == expected.labels["style"]
    left, right = judge.features([pair])[0].chunk(2)
    assert left.allclose(alone.features([drawing(DRAWN)])[0], atol=1e-4)
    assert right.allclose(alone.features([drawing(STYLED)])[0], atol=1e-4)


def test_a_picture_of_another_size_is_never_judged() -> None:
    with pytest.raises(ExpungeError, match=r"pairs are 128x64 pictures, not \[\(64, 64\)\]"):
        halves([side_by_side(DRAWN, KEPT), drawing(KEPT)])


# --- with a model


@pytest.fixture
def small(pico: Model, monkeypatch: pytest.MonkeyPatch) -> Model:
    """A model of 64-pixel pictures that knows nothing, for plans with three kept things."""
    monkeypatch.setitem(SIZES, "brief", PairsPlanSize(50, styles=1, seeds=(0,)))
    pico.pipe.unet.register_to_config(sample_size=32)
    return pico


def test_evaluate_and_audit_measure_both_halves_beside_the_base(
    small: Model, tmp_path: Path
) -> None:
    edit = erase(small, PIZZA, "negative-prompt")
    settings = {"suite": "pairs", "size": "brief", "sampler": ONE_STEP, "folder": tmp_path}
    (found,) = evaluate(small, edit, **settings).evaluations
    for metric in ("concept drawn", "beside right", "style right"):
        row = found.find(BESIDE, metric)
        assert row.base is not None
        assert row.edited.n == len(group(found.protocol.plan, BESIDE))
    assert found.find(BESIDE, "beside right").role == "retention"
    assert found.find(OTHER_PAIRS, "object right").edited.n == 3
    pictures = [Image.open(file).size for file in tmp_path.rglob("*.png")]
    assert set(pictures) == {(128, 64)}
    drawn = len(pictures)
    (audited,) = audit(small, Policy(erase=(PIZZA,)), **settings).evaluations
    assert audited.find(BESIDE, "beside right").edited == found.find(BESIDE, "beside right").base
    assert len(list(tmp_path.rglob("*.png"))) == drawn


def test_a_bench_has_in_prompt_retention_in_its_table(
    small: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "load", lambda name: small)
    monkeypatch.setattr(running.presets, "policy", lambda *erased: Policy(erase=erased))
    bench = Bench(
        suite="pairs",
        size="brief",
        seeds=(0,),
        sampler=ONE_STEP,
        methods=("negative-prompt",),
        tasks={"pizza": {"erase": {"erase": [{"target": "pizza"}]}}},
    )
    ((_, row),) = run(bench, tmp_path, [Cell("negative-prompt", "pizza", 0)])
    assert not row.refused
    assert set(row.edited) == {"its name", "beside it", "other pairs"}
    assert 0 < row.edited["its name"].n == row.edited["beside it"].n


def test_a_model_unlike_the_bundled_one_is_refused(pico: Model, tmp_path: Path) -> None:
    with pytest.raises(ExpungeError, match=r"pairs suite .*64×64.*draws 16×16; choose another"):
        audit(pico, Policy(erase=(PIZZA,)), suite="pairs", size="brief", folder=tmp_path)
    assert not list(tmp_path.rglob("*.png"))
