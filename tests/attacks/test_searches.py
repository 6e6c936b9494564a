"""Searches are deterministic, go on from any state, cost what they say, and begin at a control."""

import re
from pathlib import Path

import pytest
import torch

from expunge import Edit, Model, erase
from expunge.attacks import ATTACKS, configured
from expunge.attacks.found import Found
from expunge.attacks.known import know
from expunge.attacks.running import run
from expunge.errors import ExpungeError, Unsupported
from expunge.models.condition import Condition
from toy_attack import CONCEPT, FAST, PROMPTS, distance, target

DESCENDING = ("rows", "end-to-end")


@pytest.fixture
def edit(pico: Model) -> Edit:
    return erase(pico, CONCEPT, "uce", prior=None)


@pytest.mark.parametrize("name", DESCENDING)
def test_a_search_goes_on_from_any_state_bit_for_bit(name: str, pico: Model, edit: Edit) -> None:
    attack, one = configured(name, starts=1), target(pico, edit)
    options = {"warm_up": 1} if name == "end-to-end" else {}
    attack = configured(name, starts=1, **options)
    with pico.frozen(), one.deployed():
        whole = attack.begin(one, [0, 1], seed=3)
        for _ in range(2):
            whole.step()
        state = {key: value.clone() for key, value in whole.state.items()}
        for _ in range(2):
            whole.step()
        later = attack.begin(one, [0, 1], seed=3)
        later.restore(state)
        for _ in range(2):
            later.step()
        other = attack.begin(one, [0, 1], seed=4)
    assert torch.equal(rows(whole.found()), rows(later.found()))
    assert whole.found().loss == later.found().loss
    assert not torch.equal(rows(whole.found()), rows(other.found()))


def rows(found: Found) -> torch.Tensor:
    assert found.condition is not None
    return found.condition.rows


def test_descent_comes_closer_to_the_base(pico: Model, edit: Edit) -> None:
    one = target(pico, edit)
    every = torch.arange(len(one.known.time))
    with pico.frozen(), one.deployed():
        search = configured("rows", starts=1).begin(one, [0], seed=0)
        control = search.found().condition
        assert control is not None
        before = distance(one, every, control).item()
        for _ in range(40):
            search.step()
        after = distance(one, every, search.found().condition or control).item()
    assert after < before / 2


def test_end_to_end_draws_what_the_critic_likes(pico: Model, edit: Edit) -> None:
    one = target(pico, edit)
    with pico.frozen(), one.deployed():
        search = configured("end-to-end", starts=1, warm_up=0, steps=2, lr=0.1).begin(
            one, [0], seed=0
        )
        noise = torch.randn((4, *pico.latent_shape), generator=torch.manual_seed(5))

        def light() -> float:
            condition = search.found().condition
            assert condition is not None
            with torch.no_grad():
                return one.rollout(noise, condition, 2).mean().item()

        before = light()
        for _ in range(25):
            search.step()
        assert light() < before - 0.005


def test_calls_are_counted_by_pictures_and_gradients(pico: Model) -> None:
    one = target(pico, None)
    with pico.frozen():
        search = configured("rows", batch_size=5).begin(one, [0], seed=0)
        search.step()
        assert one.meter.calls == 3 * 5
        with torch.no_grad():
            distance(one, torch.arange(4), pico.condition(["ghost"]))
    assert one.meter.calls == 3 * 5 + 4


def test_a_budget_is_spent_and_what_was_found_is_kept(
    pico: Model, edit: Edit, tmp_path: Path
) -> None:
    attack, one = configured("rows", starts=2, batch_size=2), target(pico, edit)
    with pico.frozen():
        first = list(run(attack, one, 12, 0, tmp_path, "key"))
        calls = one.meter.calls
        again = list(run(attack, one, 12, 0, tmp_path, "key"))
        assert one.meter.calls == calls  # nothing is searched for twice
    assert [one.pictures for one in first] == [(0, 2), (1,)]
    assert [one.calls for one in first] == [24, 12]
    for finding, known in zip(first, again, strict=True):
        assert torch.equal(rows(finding.found), rows(known.found))
        assert torch.equal(rows(finding.control), rows(known.control))
        assert not torch.equal(rows(finding.found), rows(finding.control))
    with pico.frozen(), pytest.raises(ExpungeError, match="another search"):
        list(run(attack, one, 12, 0, tmp_path, "other"))


def test_what_was_found_is_read_back(tmp_path: Path) -> None:
    condition = Condition(torch.rand(1, 4, 3), torch.rand(1, 2), {"mask": torch.ones(1, 4)})
    for at, found in enumerate((Found((3, 4)), Found(condition=condition, loss=0.25))):
        found.save(tmp_path / f"{at}", "key", 7)
        read = Found.load(tmp_path / f"{at}", "key")
        assert read is not None
        assert read[1] == 7
        assert read[0][::2] == found[::2]
    read = Found.load(tmp_path / "1", "key")
    assert read is not None
    assert read[0].condition is not None
    assert torch.equal(read[0].condition.extra["mask"], condition.extra["mask"])
    assert Found.load(tmp_path / "none", "key") is None


def test_what_is_known_is_the_base_with_and_without_the_prompt(pico: Model) -> None:
    known = know(pico, PROMPTS, FAST.sampling(pico), seed=1, points=4)
    assert known.clean.shape == (3, *pico.latent_shape)
    assert known.picture.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    with torch.no_grad(), pico.frozen():
        answer = pico.predict(
            known.latents[4:8], known.time[4:8], pico.condition([PROMPTS[1]]).expand(4)
        )
        empty = pico.predict(known.latents[4:8], known.time[4:8], pico.unconditional().expand(4))
    assert torch.allclose(known.conditional[4:8], answer, atol=1e-5)
    assert torch.allclose(known.unconditional[4:8], empty, atol=1e-5)
    again = know(pico, PROMPTS, FAST.sampling(pico), seed=1, points=4)
    assert all(torch.equal(getattr(known, name), getattr(again, name)) for name in vars(known))


def test_every_attack_says_what_it_is() -> None:
    for name in ATTACKS:
        kind = ATTACKS.get(name)
        assert kind.name == name
        assert kind.title
        if posted := re.search(r"arxiv\.org/abs/(\d\d)", kind.url):
            assert 0 <= kind.year - 2000 - int(posted[1]) <= 2  # a paper appears later at times
        assert kind.knows
        assert configured(name).model_dump() is not None


def test_mistakes_in_settings_are_named(pico: Model) -> None:
    with pytest.raises(ExpungeError, match="did you mean rows"):
        configured("row")
    with pytest.raises(ExpungeError, match=r"starts: .*settings: starts"):
        configured("rows", starts=0)
    with pytest.raises(Unsupported, match="has no gate"):
        configured("evade").check(target(pico, None))
