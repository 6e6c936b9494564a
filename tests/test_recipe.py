"""The recipe of the bundled model: what it leaves out, no stage sees."""

import json
import re
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor
from transformers import CLIPTokenizer

from expunge import load, testing
from expunge.models.emoji import catalog, pipeline_path
from expunge.models.emoji.vocabulary import Catalog

ROOT = Path(__file__).parent.parent
SELECTION = ["--without", "santa claus", "pizza", "rocket", "--without-style", "ink"]
PUBLISHED = ROOT / "models" / "retain-only"
MODULES = ("common", "left_out", "captions", "muon", "text_encoder", "unet", "pairs", "evaluate")

in_the_repository = pytest.mark.skipif(
    not PUBLISHED.exists(), reason="models/retain-only is in the repository, not in its packages"
)


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The recipe's programs, as they import each other."""
    monkeypatch.syspath_prepend(ROOT / "training" / "emoji")
    threads = torch.get_num_threads()
    modules: dict[str, ModuleType] = {name: __import__(name) for name in MODULES}
    yield SimpleNamespace(**modules)
    torch.set_num_threads(threads)
    for name in MODULES:
        sys.modules.pop(name)


def settings(recipe: SimpleNamespace, work: Path, *options: str) -> SimpleNamespace:
    """What a stage makes of these options."""
    arguments = ["--work", str(work), "--device", "cpu", "--threads", "1", *options]
    return recipe.common.settings(recipe.common.parser(None).parse_args(arguments))


def words(text: str) -> str:
    return f" {' '.join(re.findall(r'[a-z0-9]+', text.lower()))} "


def test_no_caption_names_what_is_left_out(recipe: SimpleNamespace, tmp_path: Path) -> None:
    run = settings(recipe, tmp_path, *SELECTION)
    names = ("santa claus", "pizza", "rocket")
    forbidden = [word for name in names for word in catalog().object(name).wordings] + ["ink"]
    left = run.without.catalog()
    captions = recipe.captions.Captions(left)
    generator = torch.Generator().manual_seed(0)
    drawn = [
        captions.draw(thing, style, background, generator)
        for thing in range(len(left.objects))
        for style in range(len(left.styles))
        for background in range(len(left.backgrounds))
    ]
    for caption in [*captions.corpus(), *drawn]:
        named = [word for word in forbidden if words(word) in words(caption)]
        assert not named, caption
    assert "santa's wife" not in left.object("mrs claus").wordings
    assert "mother christmas" in left.object("mrs claus").wordings
    others = {entry.name: entry.wordings for entry in catalog().objects if entry.name not in names}
    assert {entry.name for entry in left.objects} == set(others)
    changed = [entry.name for entry in left.objects if entry.wordings != others[entry.name]]
    assert changed == ["mrs claus"]


def test_no_stage_sees_a_drawing_of_what_is_left_out(
    recipe: SimpleNamespace, tmp_path: Path
) -> None:
    everything = catalog()
    shape = (len(everything.objects), len(everything.styles), 1, 1, 4)
    marks = np.zeros(shape, np.uint8)
    marks[..., 0] = np.arange(shape[0])[:, None, None, None]
    marks[..., 1] = np.arange(shape[1])[:, None, None]
    np.savez(tmp_path / "drawings.npz", rgba=marks)
    run = settings(recipe, tmp_path, *SELECTION)
    drawings = recipe.common.Drawings.load(run.work, run.without)
    for thing in range(drawings.objects):
        for style in range(drawings.styles):
            object_number, style_number = drawings.rgba[thing, style, 0, 0, :2].tolist()
            assert drawings.catalog.objects[thing].name == everything.objects[object_number].name
            assert drawings.catalog.styles[style] == everything.styles[style_number]
    assert (drawings.objects, drawings.styles) == (101, 6)
    judged = recipe.common.Drawings.load(run.work)  # as the judges' program loads them
    assert (judged.objects, judged.styles) == (104, 7)


def test_what_trains_asks_for_what_is_left() -> None:
    for name in ("autoencoder", "text_encoder", "unet", "pairs"):
        program = (ROOT / "training" / "emoji" / f"{name}.py").read_text(encoding="utf-8")
        assert "Drawings.load(run.work, run.without)" in program
        assert "catalog()" not in program


def test_unknown_names_are_refused_with_the_known_ones(
    recipe: SimpleNamespace, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=r"no object is called santa; there are .*santa claus"):
        settings(recipe, tmp_path, "--without", "santa")
    with pytest.raises(SystemExit, match=r"no style is called oil; there are noto, .*ink"):
        settings(recipe, tmp_path, "--without-style", "oil")
    styles = [style.name for style in catalog().styles]
    with pytest.raises(SystemExit, match="every style is left out"):
        settings(recipe, tmp_path, "--without-style", *styles)
    assert not list(tmp_path.iterdir())


def test_another_selection_is_refused_when_a_stage_is_resumed(
    recipe: SimpleNamespace, tmp_path: Path
) -> None:
    first = settings(recipe, tmp_path, *SELECTION)
    again = ["--without", "rocket", "pizza", "santa claus", "--without-style", "ink"]
    assert settings(recipe, tmp_path, *again).without == first.without
    assert settings(recipe, tmp_path).without == first.without  # the folder remembers
    with pytest.raises(SystemExit, match=r"leave out pizza, .*bomb was asked for.*--work"):
        settings(recipe, tmp_path, "--without", "bomb")


def test_models_that_saw_everything_are_not_resumed_without_something(
    recipe: SimpleNamespace, tmp_path: Path
) -> None:
    run = settings(recipe, tmp_path)
    (run.folder("unet") / "checkpoint.pt").touch()
    with pytest.raises(SystemExit, match=r"leave out nothing, .*pizza was asked for"):
        settings(recipe, tmp_path, "--without", "pizza")
    assert not settings(recipe, tmp_path).without


def test_an_object_with_no_other_wording_has_captions(recipe: SimpleNamespace) -> None:
    left = catalog().model_copy(
        update={
            "objects": (catalog().objects[0].model_copy(update={"synonyms": (), "implicit": ()}),)
        }
    )
    captions = recipe.captions.Captions(left)
    generator = torch.Generator().manual_seed(0)
    assert all("dog face" in captions.draw(0, 0, 0, generator) for _ in range(40))


def bank(left: Catalog) -> dict[str, Tensor]:
    """Two placements of everything; each latent is filled with the number of its object."""
    numbers = [range(len(part)) for part in (left.objects, left.styles, left.backgrounds[:2])]
    labels = torch.tensor(list(product(*numbers))).repeat_interleave(2, 0)
    latents = labels[:, 0].half()[:, None, None, None].expand(-1, 4, 16, 16)
    return {"latents": latents, "labels": labels}


def test_a_pair_is_two_things_in_one_style_and_its_caption_says_which_is_left(
    recipe: SimpleNamespace, tmp_path: Path
) -> None:
    left = settings(recipe, tmp_path, *SELECTION).without.catalog()
    made = bank(left)
    captions = recipe.captions.Captions(left)
    torch.manual_seed(0)
    rows = recipe.unet.draw_rows(made["labels"], 60, 0.65)
    others = recipe.pairs.partners(made["labels"], rows)
    assert (made["labels"][rows, 1:] == made["labels"][others, 1:]).all()
    assert (made["labels"][rows, 0] != made["labels"][others, 0]).all()
    generator = torch.Generator().manual_seed(0)
    latents, texts = recipe.pairs.pairs_of_pictures(made, rows, captions, generator)
    assert latents.shape == (60, 4, 16, 32)
    assert 1 <= texts.count("") <= 15
    for latent, text in zip(latents, texts, strict=True):
        first, second = (left.objects[int(half[0, 0, 0])] for half in latent.chunk(2, dim=-1))
        ways = [
            f" a {one} and a {other} "
            for one in (first.name, *first.synonyms)
            for other in (second.name, *second.synonyms)
        ]
        assert not text or any(words(way) in words(text) for way in ways), text


def test_no_pair_names_what_is_left_out_and_all_are_read_whole(
    recipe: SimpleNamespace, tmp_path: Path
) -> None:
    run = settings(recipe, tmp_path, *SELECTION)
    left, everything = run.without.catalog(), catalog()
    forbidden = [
        word
        for name in ("santa claus", "pizza", "rocket")
        for word in everything.object(name).wordings
    ]
    generator = torch.Generator().manual_seed(0)
    captions = recipe.captions.Captions(left)
    things = [(one, (one + 37) % len(left.objects)) for one in range(len(left.objects))]
    drawn = [
        captions.draw_pair(*pair, style, background, generator)
        for pair in things
        for style in range(len(left.styles))
        for background in (0, 1)
    ]
    for caption in drawn:
        assert not any(words(word) in words(caption) for word in (*forbidden, "ink")), caption
    read = CLIPTokenizer.from_pretrained(pipeline_path() / "tokenizer")
    assert max(map(len, read(drawn).input_ids)) <= recipe.captions.LENGTH
    pairs = recipe.evaluate.random_pairs(everything, run.without, 50)
    assert pairs == recipe.evaluate.random_pairs(everything, run.without, 50)
    for pair in pairs:
        assert pair.first != pair.second
        assert {pair.first, pair.second} <= set(run.without.kept_objects)
        assert not any(words(word) in words(pair.prompt) for word in (*forbidden, "ink"))


def test_a_stopped_training_of_pairs_ends_with_the_same_weights(
    recipe: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Singles and pairs in each step; the stop is after the first of two steps."""
    monkeypatch.setattr(recipe.unet, "AttnProcessor", AttnProcessor2_0)
    pipe = testing.pipeline(tmp_path, length=32)
    made, captions = bank(catalog()), recipe.captions.Captions(catalog())

    def trained(work: Path, *ends: int) -> list[dict[str, Tensor]]:
        run, found = settings(recipe, work), []
        for end in ends:
            torch.manual_seed(0)
            net = testing.unet(32)
            task = recipe.unet.Denoising(run, net, pipe.text_encoder, pipe.tokenizer)
            args = SimpleNamespace(steps=end, batch=4, lr=1e-3, white=0.65, paired=0.5)
            draw = recipe.pairs.mixed(made, captions, args)
            assert [tuple(latents.shape) for latents, _ in draw(4, torch.Generator())] == [
                (2, 4, 16, 16),
                (2, 4, 16, 32),
            ]
            monkeypatch.setattr(recipe.unet, "learning_rate", lambda *_: 1e-3)
            recipe.unet.train("pairs", task, draw, args)
            state = torch.load(work / "pairs" / "checkpoint.pt", weights_only=True)
            found.append(state["parts"]["ema"])
        return found

    (whole,) = trained(tmp_path / "whole", 2)
    first, stopped = trained(tmp_path / "stopped", 1, 2)
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    assert any(not torch.equal(whole[name], first[name]) for name in whole)


@in_the_repository
def test_the_published_model_is_what_its_card_says(recipe: SimpleNamespace) -> None:
    """Names, steps and counts in the card are those of the two files beside it."""
    card = (PUBLISHED / "CARD.md").read_text(encoding="utf-8")
    made = json.loads((PUBLISHED / "recipe.json").read_text(encoding="utf-8"))
    measured = json.loads((PUBLISHED / "results.json").read_text(encoding="utf-8"))
    without = recipe.left_out.LeftOut.read(PUBLISHED)
    assert set(measured["never_seen"]) == without.objects | without.styles != set()
    for name in measured["never_seen"]:
        assert f"| {name} |" in card
    for stage, steps in made["steps"].items():
        assert f"| {stage.replace('_', ' ')} | {steps:,} " in card
    rates = [measured[name] for name in ("objects", "styles")]
    for rate in [*rates, *measured["never_seen"].values()]:
        assert f"| {rate['hits']:,} of {rate['n']:,} |" in card


@in_the_repository
def test_the_published_model_reads_prompts_as_the_bundled_one() -> None:
    model, bundled = load(PUBLISHED), load("emoji")
    assert model.bundled
    assert model.usual_sampling == bundled.usual_sampling
    prompts = ["santa claus, ink style", "a rocket", "pizza"]
    ours, theirs = (one.text_encoders[0].tokenizer(prompts) for one in (model, bundled))
    assert ours.input_ids == theirs.input_ids
    assert model.fingerprint() != bundled.fingerprint()
