"""Changes of the weights: what they are, that they end as they should, what refuses them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from expunge import Edit, Model, erase
from expunge.attacks import configured
from expunge.attacks.base import Search
from expunge.attacks.relearning import FineTuning, learnt
from expunge.attacks.tampering import Average, Prune, Quantise, Tampering
from expunge.attacks.target import Target
from expunge.edits.applied import Applied
from expunge.errors import ExpungeError, Unsupported
from expunge.evaluation.restoration import weight_bits
from expunge.generation import ImageRequest, sample
from expunge.models.process import Diffusion
from expunge.testing import membrane
from toy_attack import CONCEPT, FAST, target

KEPT = ("a ghost", "a dog")
SMALL = {"examples": 2, "batch_size": 2}


@pytest.fixture
def edit(pico: Model) -> Edit:
    return erase(pico, CONCEPT, "uce", prior=None)


@pytest.fixture
def attacked(pico: Model, edit: Edit) -> Target:
    return replace(target(pico, edit), kept=KEPT)


def begun(one: Target, name: str = "relearning", **settings: object) -> Search:
    attack = configured(name, **{**SMALL, **settings})
    with one.model.frozen():
        return attack.begin(one, range(3), 0)


def weights(search: Search) -> dict[str, Tensor]:
    found = search.found().weights
    assert found is not None
    return dict(found)


def test_pruning_takes_the_smallest_of_each_matrix() -> None:
    weight = torch.tensor([[0.1, -4.0, 0.3], [-0.2, 5.0, 1.0]])
    pruned = Prune().altered(weight, weight, 0.5)
    assert pruned.tolist() == [[0.0, -4.0, 0.0], [0.0, 5.0, 1.0]]
    even = torch.ones(4, 5)
    assert (Prune().altered(even, even, 0.3) == 0).sum() == 6  # of equals, no more than its share
    bias = torch.tensor([0.1, 2.0])
    assert torch.equal(Prune().altered(bias, bias, 0.5), bias)


def test_rounding_is_to_the_nearest_of_each_rows_numbers() -> None:
    weight = torch.tensor([[0.4, -3.0, 1.6, 2.2], [0.0, 0.0, 0.0, 0.0], [30.0, 4.0, 6.0, -16.0]])
    rounded = Quantise().altered(weight, weight, 3)  # -3 to 3 steps of the row's largest / 3
    assert rounded.tolist() == [[0.0, -3.0, 2.0, 2.0], [0.0] * 4, [30.0, 0.0, 10.0, -20.0]]
    many = torch.randn(6, 3, 3, 3, generator=torch.manual_seed(0))
    step = many.flatten(1).abs().amax(1) / 127
    off = (Quantise().altered(many, many, 8) - many).abs().flatten(1).amax(1)
    assert bool((off <= step / 2 + 1e-6).all())
    assert torch.equal(Quantise().altered(step, step, 4), step)


def test_an_average_lies_between(attacked: Target, edit: Edit, tmp_path: Path) -> None:
    model = attacked.model
    with attacked.deployed():
        edited = {name: model.denoiser.get_parameter(name).clone() for name in model.select("all")}
    found = list(Average(shares=(0.25, 0.5)).tampered(attacked, 1, 0, tmp_path, "key"))
    assert [one.amount for one in found] == [0.25, 0.5]
    assert {one.calls for one in found} == {0}
    for one in found:
        for name, weight in one.weights.items():
            base = model.base_weight(name)
            wanted = (1 - one.amount) * edited[name] + one.amount * base
            torch.testing.assert_close(weight, wanted)
    with pytest.raises(Unsupported, match="averaged with itself"):
        list(Average().tampered(replace(attacked, edit=None), 1, 0, tmp_path, "key"))


@pytest.mark.parametrize("name", ["prune", "quantise", "average", "relearning", "other-lora"])
def test_before_the_first_step_it_is_the_edited_model(name: str, attacked: Target) -> None:
    settings = SMALL if name in ("relearning", "other-lora") else {}
    with attacked.model.frozen():
        first = configured(name, **settings).begin(attacked, range(3), 0).found().weights
    request = [ImageRequest(case_number="0", prompt="santa claus", seed=1)]

    def drawn(one: Target) -> bytes:
        with one.deployed():
            return next(sample(one.model, request, FAST))[1].numpy().tobytes()

    before, bits = drawn(attacked), weight_bits(attacked.model)
    assert drawn(replace(attacked, edit=None, weights=first)) == before
    assert drawn(replace(attacked, edit=None)) != before
    assert weight_bits(attacked.model) == bits


@pytest.mark.parametrize("rank", [0, 2])
def test_training_goes_on_from_any_state_bit_for_bit(rank: int, attacked: Target) -> None:
    whole, later = (begun(attacked, rank=rank, lr=1e-3) for _ in range(2))
    before = weights(whole)
    with attacked.model.frozen():
        for _ in range(2):
            whole.step()
        state = {key: value.clone() for key, value in whole.state.items()}
        whole.step()
        later.restore(state)
        later.step()
    ends = weights(whole), weights(later)
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in before)
    assert any(not torch.equal(ends[0][name], before[name]) for name in before)
    assert attacked.meter.calls == 3 * 2 * 4


def test_relearning_comes_closer_to_the_concepts_pictures(attacked: Target) -> None:
    search = begun(attacked, lr=5e-3, batch_size=4, examples=1)
    losses = []
    with attacked.model.frozen():
        for _ in range(15):
            search.step()
            losses.append(search.found().loss)
    assert sum(losses[-5:]) < sum(losses[:5])


def test_each_learns_from_its_own_pictures(attacked: Target) -> None:
    assert configured("relearning").captions(attacked) == attacked.prompts
    assert configured("other-lora").captions(attacked) == KEPT
    with pytest.raises(Unsupported, match="should keep"):
        configured("other-lora").check(replace(attacked, kept=()))
    with attacked.model.frozen():
        first, second = (learnt(attacked, KEPT, seed) for seed in (0, 1))
    assert first.shape == (2, *attacked.model.latent_shape)
    assert not torch.allclose(first, second)


def test_a_lora_changes_matrices_alone(attacked: Target) -> None:
    search = begun(attacked, "other-lora", lr=1e-2)
    before = weights(search)
    with attacked.model.frozen():
        search.step()
    changed = [name for name, one in weights(search).items() if not torch.equal(one, before[name])]
    shapes = [before[name].flatten(1).shape for name in changed]
    assert changed
    assert {len(shape) for shape in shapes} == {2}


def test_what_runs_keeps_the_weights(attacked: Target, tmp_path: Path) -> None:
    attack = configured("relearning", **SMALL, lr=1e-3)
    assert isinstance(attack, FineTuning)
    with attacked.model.frozen():
        [first] = attack.tampered(attacked, 4, 0, tmp_path, "key")
        spent = attacked.meter.calls
        [again] = attack.tampered(attacked, 4, 0, tmp_path, "key")
    assert first.calls == spent == attacked.meter.calls == 12  # 3 pictures, 4 calls each
    assert again.calls == 12
    assert all(torch.equal(again.weights[name], one) for name, one in first.weights.items())


@pytest.mark.parametrize("name", ["prune", "quantise", "average", "relearning", "other-lora"])
def test_gates_and_guards_are_taken_off_rather_than_attacked(
    name: str, pico: Model, attacked: Target
) -> None:
    attack = configured(name)
    assert isinstance(attack, Tampering)
    attack.check(attacked)
    for edit in (membrane(pico, CONCEPT), erase(pico, CONCEPT, "negative-prompt")):
        with pytest.raises(Unsupported, match="takes off first"):
            attack.check(replace(attacked, edit=edit))


def test_a_failure_leaves_the_model_as_it_was(
    attacked: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    bits = weight_bits(attacked.model)
    monkeypatch.setattr(Diffusion, "target", lambda *_: float("nan") * _[2])
    search = begun(attacked)
    with pytest.raises(ExpungeError, match="the loss became nan"), attacked.model.frozen():
        search.step()
    with pytest.raises(ExpungeError, match="unknown role"):
        begun(attacked, role="some")
    for settings in ({"lr": 0}, {"examples": 0}):
        with pytest.raises(ExpungeError):
            configured("relearning", **settings)
    with (
        pytest.raises(ZeroDivisionError),
        replace(attacked, edit=None, weights=weights(search)).deployed(),
    ):
        _ = 1 / 0
    assert weight_bits(attacked.model) == bits
    assert not Applied.to(attacked.model).components
