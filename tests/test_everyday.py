"""Everyday prompts stay by default, but for those that name what is erased."""

from pathlib import Path

import pytest
import torch

from expunge import Concept, Edit, ExpungeError, Model, Policy, erase, load
from expunge.algebra.ridge import gram
from expunge.edits.ridge import LeftOut, Ridge, Stays
from expunge.files import cache_folder, digest
from expunge.methods import settings
from expunge.models.emoji import prior_folder
from expunge.prior import PADDING, PROMPTS, Prior, everyday_prior, left_out, listed
from expunge.prompts.everyday import everyday, naming
from expunge.prompts.lexicon import refused

CLOSED = ("uce", "rece", "trce", "mace")
LISTED = listed()
DOG = Concept(target="dog", anchor="man")
TOGETHER = (
    Concept(target="rocket", anchor="man"),
    Concept(target="skateboard", anchor="man"),
)
"""One everyday prompt names both."""


def solved(edit: Edit) -> Ridge:
    payload = edit.components[0].payload
    assert isinstance(payload, Ridge)
    return payload


def test_the_list_is_long_enough_and_allowed() -> None:
    assert len(everyday()) > PROMPTS
    assert len(set(everyday())) == len(everyday())
    assert not any(refused({"prompt": prompt}) for prompt in everyday())


def test_a_prompt_of_each_noun_comes_first() -> None:
    first = set(everyday()[:800])
    for noun in ("accordion", "cup of coffee", "zebra", "lighthouse"):
        assert naming(tuple(first), [noun])


def test_the_last_row_of_padding_stands_for_the_others(pico: Model) -> None:
    prompts = ("dog", "a photo of a cat", "man")
    total = torch.zeros(32, 32, dtype=torch.float64)
    for prompt in prompts:
        rows = pico.encode([prompt])[0].double()
        read = min(16, pico.last_token(prompt) + 2 + PADDING)
        weights = torch.ones(read).double()
        weights[-1] += 16 - read
        total += rows[:read].T @ (weights[:, None] * rows[:read])
    made = Prior.of(pico, prompts, padding=PADDING)
    assert torch.allclose(made.gram, total, rtol=1e-5, atol=1e-4)
    assert made.metadata.padding == PADDING


def test_padding_left_out_hardly_matters_to_the_bundled_model() -> None:
    model, some = load("emoji", device="cpu"), LISTED[:40]
    brief, whole = (Prior.of(model, some, padding=rows).gram for rows in (PADDING, None))
    assert 0 < (brief - whole).norm() < 0.1 * whole.norm()


@pytest.mark.parametrize(
    ("phrase", "prompt", "named"),
    [
        ("dog", "A photo of two Dogs on the grass", True),
        ("dogs", "my dog", True),
        ("a dog", "one dog", True),
        ("t shirt", "a red t-shirt", True),
        ("puppy", "some puppies", True),
        ("candies", "candy", True),
        ("bus", "buses in the rain", True),
        ("santa claus", "santa", False),
        ("cat", "a caterpillar", False),
        ("hot dog", "a dog", False),
    ],
)
def test_a_prompt_names_a_phrase_in_any_number(phrase: str, prompt: str, named: bool) -> None:
    assert naming([prompt], [phrase]) == ([0] if named else [])


def test_what_stays_is_the_sum_of_all_other_prompts(pico: Model) -> None:
    prior = everyday_prior(pico)
    others = [prompt for prompt in LISTED if not naming([prompt], ["dog"])]
    assert 0 < len(LISTED) - len(others) < 10
    out = left_out(pico, prior, ["dog"])
    assert out is not None
    rows = Stays.summed(prior.gram, out).rows
    assert torch.allclose(
        gram(rows), Prior.of(pico, others, padding=PADDING).gram, rtol=1e-5, atol=0.05
    )


@pytest.mark.parametrize("method", CLOSED)
def test_everyday_prompts_move_less(pico: Model, method: str) -> None:
    values = {"mace": {"rank": 0}, "trce": {"prior_scale": 0.1}}.get(method, {})
    rows = pico.encode(["a photo of a horse on the grass", "a chair, oil painting style"])

    def moved(**given: object) -> float:
        edit = erase(pico, Concept(target="ghost", anchor="man"), method, **values, **given)
        name = edit.names[0]
        change = edit.components[0].payload.change(name, pico.base_weight(name))  # type: ignore[union-attr]
        return float((rows.double() @ change.T).norm())

    assert moved() < 0.8 * moved(prior="none")


@pytest.mark.parametrize("method", ["uce", "trce", "mace"])
def test_two_edits_that_leave_out_the_same_prompt_add_up(pico: Model, method: str) -> None:
    values = {"rank": 0} if method == "mace" else {}
    parts = [erase(pico, one, method, **values) for one in TOGETHER]
    shared = set.intersection(*(set(solved(p).left_out.numbers.tolist()) for p in parts))  # type: ignore[union-attr]
    assert shared
    both = erase(pico, Policy(erase=TOGETHER), method, **values)
    added = Ridge.together([solved(part) for part in parts])
    assert torch.allclose(added.matrix, solved(both).matrix, atol=1e-9)


def test_prompts_left_out_twice_are_held_once() -> None:
    one = LeftOut(torch.tensor([4, 7]), torch.tensor([1, 2]), torch.eye(3).double())
    two = LeftOut(torch.tensor([7, 9]), torch.tensor([2, 1]), torch.eye(3).double()[[1, 2, 0]])
    both = LeftOut.together([one, two])
    assert both.numbers.tolist() == [4, 7, 9]
    assert both.counts.tolist() == [1, 2, 1]
    assert both.rows.argmax(1).tolist() == [0, 1, 2, 0]


def test_the_saved_edit_is_the_same(pico: Model, tmp_path: Path) -> None:
    edit = erase(pico, DOG, "uce")
    edit.save(tmp_path / "edit.safetensors")
    loaded = Edit.load(tmp_path / "edit.safetensors")
    assert loaded.id == edit.id
    assert torch.equal(solved(loaded).matrix, solved(edit).matrix)
    assert torch.equal(solved(loaded).kept, solved(edit).kept)


def test_the_record_names_the_prompts(pico: Model) -> None:
    recorded = erase(pico, DOG, "uce").provenance[0].settings["prior"]
    assert recorded["prompts"] == digest(list(LISTED))
    assert erase(pico, DOG, "uce", prior="none").provenance[0].settings["prior"] is None


@pytest.mark.parametrize("method", CLOSED)
def test_released_programs_have_none(pico: Model, method: str) -> None:
    with pytest.raises(ExpungeError, match='prior: only with fidelity="corrected"'):
        erase(pico, DOG, method, fidelity="original", prior="default")


def test_it_is_computed_once(pico: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    first = everyday_prior(pico)
    monkeypatch.setattr(Prior, "of", None)
    assert torch.equal(everyday_prior(pico).gram, first.gram)


def test_a_broken_file_is_made_anew(
    pico: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path))
    first = everyday_prior(pico)
    [name] = (path.name for path in tmp_path.iterdir())
    (tmp_path / name).write_bytes(b"cut short")
    (tmp_path / name.replace(".safe", ".unfinished.safe")).write_bytes(b"this too")
    assert torch.equal(everyday_prior(pico).gram, first.gram)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    Prior.load(tmp_path / name)


def test_a_folder_that_can_not_be_written_costs_only_time(
    pico: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = everyday_prior(pico)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "file"))
    assert torch.equal(everyday_prior(pico).gram, first.gram)


def test_the_cache_lies_where_the_user_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_CACHE", "/one")
    monkeypatch.setenv("XDG_CACHE_HOME", "/two")
    assert cache_folder() == Path("/one")
    monkeypatch.delenv("EXPUNGE_CACHE")
    assert cache_folder() == Path("/two/expunge")


def test_the_bundled_model_brings_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    [path] = prior_folder().iterdir()
    monkeypatch.setattr(Prior, "of", None)
    found = everyday_prior(load("emoji"))
    assert found.metadata == Prior.load(path).metadata
    assert found.metadata.count == PROMPTS


@pytest.mark.parametrize("method", ["esd", "fmn"])
def test_trained_methods_hold_everyday_prompts_too(pico: Model, method: str) -> None:
    policy = Policy(erase=(DOG,))
    with_prior, without = (settings(method)(prior=prior) for prior in ("default", "none"))
    held = with_prior.kept_words(pico, policy, (), 1.0)["kept_words"]  # type: ignore[attr-defined]
    others = [prompt for prompt in LISTED if not naming([prompt], ["dog"])]
    wanted = Prior.of(pico, others, padding=PADDING).gram / PROMPTS
    assert torch.allclose(held.double(), wanted, rtol=1e-4, atol=1e-3)
    assert without.kept_words(pico, policy, (), 1.0) == {}  # type: ignore[attr-defined]
    assert with_prior.kept_words(pico, policy, (), 0.0) == {}  # type: ignore[attr-defined]


def test_an_erased_phrase_is_found_however_it_is_written() -> None:
    assert naming(["a dog", "a cat"], ["\uff24\uff4f\u200b\uff47"]) == [0]
