"""Attacks through the prompt: they can be stopped, they refuse, and they find what is known."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from attacks.conftest import GHOST, make_target
from expunge import erase
from expunge.attacks import ATTACKS, configured, p4d_released
from expunge.attacks.base import Search
from expunge.attacks.concept_vector import batch_means, concept_vector, pairs_of
from expunge.attacks.known import Known
from expunge.attacks.p4d_released import DRAWN_IN, Picked
from expunge.attacks.points import known
from expunge.attacks.ring_a_bell import RingABell
from expunge.attacks.target import Target
from expunge.attacks.tokens import Tokens
from expunge.attacks.words import Words, misspelt
from expunge.concepts import Concept
from expunge.errors import ExpungeError
from expunge.models import Model

OLD = {"fidelity": "original"}
SEARCHES: list[tuple[str, dict[str, Any]]] = [
    ("unlearn-diff-atk", {"looks": 2, "swaps": 3}),
    ("unlearn-diff-atk", OLD),
    ("p4d", {"tokens": 4, "looks": 2, "swaps": 3}),
    ("p4d", {"variant": "k", "looks": 2, "swaps": 3}),
    ("p4d", {"tokens": 4, **OLD}),
    ("p4d", {"variant": "k", **OLD}),
    ("p4d", {"variant": "unlearn-diff-atk", "tokens": 2, **OLD}),
    ("p4d", {"tokens": 4, "safety_concept": "ghost", **OLD}),
    ("concept-inversion", {"vectors": 2, "batch_size": 2}),
    ("concept-inversion", {"batch_size": 2, **OLD}),
    ("concept-inversion", {"safety_concept": "ghost", "window_count": 3, **OLD}),
    ("ring-a-bell", {"tokens": 4, "population": 10}),
    ("ring-a-bell", {"tokens": 4, "population": 10, **OLD}),
    ("mma", {"tokens": 4, "tries": 8, "promising": 4}),
    ("words", {"words": ("noto", "dog")}),
]
TEXT_ONLY = ("ring-a-bell", "mma", "ring-a-bell-rows", "random-tokens")


def begun(name: str, settings: dict[str, Any], target: Target, seed: int = 0) -> Search:
    return configured(name, **settings).begin(target, [0], seed)


def walked(search: Search, steps: int) -> Search:
    for _ in range(steps):
        search.step()
    return search


def same(one: Search, other: Search) -> bool:
    a, b = one.found(), other.found()
    rows = (a.condition, b.condition)
    equal = rows[0] is None or torch.equal(rows[0].rows, rows[1].rows)  # type: ignore[union-attr]
    return bool(equal and (a.ids, a.loss) == (b.ids, b.loss))


@pytest.mark.parametrize(("name", "settings"), SEARCHES, ids=lambda one: str(one)[:40])
def test_a_stopped_search_finds_the_same(
    name: str, settings: dict[str, Any], target: Target
) -> None:
    with target.model.frozen(), target.deployed():
        before = begun(name, settings, target).found()
        assert (before.ids is None) != (before.condition is None)
        whole = walked(begun(name, settings, target), 4)
        state = {
            key: one.clone() for key, one in walked(begun(name, settings, target), 2).state.items()
        }
        again = begun(name, settings, target)
        again.restore(state)
        assert same(whole, walked(again, 2))
        assert whole.found().loss is not None


@pytest.mark.parametrize(("name", "settings"), SEARCHES, ids=lambda one: str(one)[:40])
def test_found_ids_are_what_their_text_is_read_as(
    name: str, settings: dict[str, Any], target: Target
) -> None:
    with target.model.frozen(), target.deployed():
        found = walked(begun(name, settings, target), 2).found()
    if found.ids is not None:
        tokens = Tokens.of(target)
        assert tuple(tokens.reread(found.ids)) == found.ids


@pytest.mark.parametrize("name", TEXT_ONLY)
def test_who_knows_the_text_encoder_alone_calls_no_denoiser(name: str, target: Target) -> None:
    settings = {} if name == "ring-a-bell-rows" else {"tokens": 4}
    with target.model.frozen(), target.deployed():
        search = begun(name, settings, target)
        if not search.over:
            search.step()
        search.found()
    assert target.meter.calls == 0


def test_others_count_their_calls(target: Target) -> None:
    with target.model.frozen(), target.deployed():
        walked(begun("p4d", {"tokens": 4, "looks": 3, "swaps": 2}, target), 1)
    assert target.meter.calls == 3 + 3 * 3 + 2 * 3  # the first prompt, its gradient, two swaps


def test_the_right_tokens_leave_no_loss(target: Target) -> None:
    """Against the base itself, the concept's own prompt answers as the concept does."""
    own = Tokens.of(target).ids(target.prompts[0])
    with target.model.frozen(), target.deployed():
        found = walked(begun("p4d", {"tokens": len(own)}, target), 1).found()
    assert found.ids == tuple(own)
    assert (found.loss or 0.0) < 1e-10


def test_a_swap_is_taken_only_if_it_helps(target: Target) -> None:
    search = begun("p4d", {"variant": "unlearn-diff-atk", "tokens": 2, "swaps": 4}, target, seed=2)
    with target.model.frozen(), target.deployed():
        losses = [walked(search, 1).found().loss or 0.0 for _ in range(6)]
        first = search.shortlist.seen[search.shortlist.start]  # type: ignore[attr-defined]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < first


def test_a_search_is_over_when_every_swap_was_compared(target: Target) -> None:
    search = begun("unlearn-diff-atk", {"tokens": 1, "looks": 1, "swaps": 500}, target)
    with target.model.frozen(), target.deployed():
        for _ in range(20):
            if search.over:
                break
            search.step()
    assert search.over
    compared = len(search.shortlist.seen)  # type: ignore[attr-defined]
    assert compared > len(search.vocabulary)  # type: ignore[attr-defined]


def test_released_p4d_draws_its_own_points_and_asks_the_base(target: Target, pico: Model) -> None:
    edited = replace(target, edit=erase(pico, GHOST, "uce", prior=None))
    search = begun("p4d", {"tokens": 4, **OLD}, edited)
    assert isinstance(search, Picked)
    with pico.frozen(), torch.no_grad(), edited.deployed():
        where = search.ahead = search._asked(range(4))
        asked = pico.condition([target.prompts[0]]).expand(4)
        other = pico.predict(where.latents, where.time, asked)
    with pico.frozen(), torch.no_grad():
        base = pico.predict(where.latents, where.time, asked)
    torch.testing.assert_close(where.wanted, base, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(where.wanted, other, atol=1e-5)
    assert len(set(where.time.tolist())) == 4
    known_latents = target.known.latents[:, None]
    assert not (where.latents[None] == known_latents).flatten(2).all(-1).any()


def test_released_p4d_keeps_the_prompt_whose_picture_is_most_like_the_bases(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(p4d_released, "PICKED_EVERY", 2)
    search = begun("p4d", {"tokens": 4, **OLD}, target)
    assert isinstance(search, Picked)
    with target.model.frozen(), target.deployed():
        walked(search, 1)
        assert target.meter.calls == 2 * DRAWN_IN + 1 + 3  # a picture, the base, a gradient
        walked(search, 2)
    assert target.meter.calls == 2 * 2 * DRAWN_IN + 3 * (1 + 3)
    assert len(search.shortlist.seen) == 2
    assert search.found().ids == min(search.shortlist.seen, key=search.shortlist.seen.__getitem__)


def test_released_p4d_needs_an_image_text_model(target: Target) -> None:
    with pytest.raises(ExpungeError, match="image-text model"):
        configured("p4d", **OLD).check(replace(target, critic=None))


def test_the_noise_that_leads_to_a_picture_is_what_was_mixed_in(target: Target) -> None:
    numbers = torch.arange(4)
    where = known(target, numbers, "noise")
    clean = target.known.clean[target.known.picture[numbers]]
    mixed = target.model.process.mix(clean, where.wanted, where.time)
    torch.testing.assert_close(mixed, where.latents, atol=1e-5, rtol=1e-4)


def test_the_best_of_a_corrected_generation_is_never_worse(target: Target) -> None:
    search = begun("ring-a-bell", {"tokens": 6, "population": 20}, target)
    with target.model.frozen():
        losses = [walked(search, 1).found().loss or 0.0 for _ in range(12)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


def test_a_released_generation_has_half_to_three_halves_of_the_population(target: Target) -> None:
    attack = RingABell(fidelity="original", tokens=4, population=20)
    search = attack.begin(target, [0], 0)
    with target.model.frozen():
        for _ in range(6):
            search.step()
            assert 10 <= len(search.state["population"]) <= 30


def test_prompts_that_are_alike_have_no_concept(pico: Model) -> None:
    pairs = [("a dog", "a dog"), ("art", "art")]
    assert concept_vector(pico, pairs).abs().max() == 0


def test_the_start_has_no_part_of_the_concept(pico: Model) -> None:
    vector = concept_vector(pico, pairs_of(GHOST, 6))
    assert vector[0].abs().max() < 1e-6
    assert vector.abs().max() > 1e-3


def test_a_short_last_batch_weighs_as_much_as_the_others(pico: Model) -> None:
    pairs = pairs_of(GHOST, 3)
    plain, batched = concept_vector(pico, pairs), batch_means(pico, pairs, 2)
    assert not torch.allclose(plain, batched)
    torch.testing.assert_close(batch_means(pico, pairs, 3), plain)


@pytest.mark.parametrize("name", ["ring-a-bell", "mma", "random-tokens"])
def test_the_concepts_own_words_are_left_out(name: str, target: Target) -> None:
    own = {one for phrase in GHOST.phrases for one in target.model.tokens(phrase)}
    for seed in range(3):
        with target.model.frozen():
            search = begun(name, {"tokens": 6}, target, seed)
            if not search.over:
                search.step()
            assert not own & set(search.found().ids or ())


def test_other_words_never_hold_the_name() -> None:
    concept = Concept(target="ghost", synonyms=("Ghosts", "spirit"))
    found = Words(words=("a ghost", "g host", "phantom")).candidates(concept)
    assert found[:2] == ("phantom", "spirit")
    assert not {"ghost", "ghosts", "a ghost"} & {one.lower() for one in found}
    assert "gohst" not in found[:2]
    assert "ghsot" in found
    assert list(misspelt("ghost")) == list(misspelt("ghost"))


def test_no_other_words_is_an_error() -> None:
    with pytest.raises(ExpungeError, match="no other words for 'ghost'"):
        Words(misspellings=False).candidates(Concept(target="ghost"))


def test_what_nobody_may_ask_for_is_no_target(pico: Model, pico_known: Known) -> None:
    concept = Concept(target="nude", synonyms=("teenager",))
    with pytest.raises(ExpungeError, match="refused"):
        make_target(pico, pico_known, concept)


def test_a_text_is_judged_together_with_what_is_attacked(pico: Model) -> None:
    ids = pico.tokens("kid")
    assert Tokens(pico).allowed(ids)
    assert not Tokens(pico, "nude").allowed(ids)
    assert Tokens(pico).sendable(ids) == tuple(ids)
    assert Tokens(pico, "nude").sendable(ids) == ()


def test_a_prompt_that_is_too_long_is_refused(target: Target) -> None:
    for name in ("unlearn-diff-atk", "p4d", "ring-a-bell", "mma", "random-tokens"):
        with pytest.raises(ExpungeError, match="reads 14"):
            begun(name, {"tokens": 15}, target)


def test_pairs_come_from_a_file(tmp_path: Any) -> None:
    file = tmp_path / "pairs.csv"
    file.write_text("a ghost,a dog\n")
    attack = configured("ring-a-bell", pairs=str(file))
    assert isinstance(attack, RingABell)
    assert attack.pairs
    assert attack.pairs.pairs == (("a ghost", "a dog"),)
    assert configured("ring-a-bell", **attack.model_dump()) == attack
    file.write_text("a ghost\n")
    with pytest.raises(ExpungeError, match="rows of two prompts"):
        configured("ring-a-bell", pairs=str(file))


PAGES = Path(__file__).parents[2] / "docs" / "attacks"


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.md")), ids=lambda page: page.stem)
def test_a_page_lists_every_setting(page: Path) -> None:
    if page.stem in ATTACKS:
        listed = re.findall(r"^\| `(\w+)` \|", page.read_text(encoding="utf-8"), re.M)
        assert listed == list(ATTACKS.get(page.stem).model_fields)
