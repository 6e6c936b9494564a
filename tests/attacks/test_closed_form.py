"""The best rows: exact where the edit can be undone, never longer than allowed, never beaten."""

import pytest
import torch
from torch import Tensor

from expunge import Model, erase
from expunge.attacks import configured
from expunge.attacks.closed_form import NormalEquations
from toy_attack import CONCEPT, PROMPTS, distance, target


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def pairs() -> list[tuple[Tensor, Tensor]]:
    """Projections after and before an edit, 8 wide."""
    change = torch.eye(8) + 0.3 * random(8, 8, seed=9)
    return [(before @ change, before) for before in (random(6, 8, seed=n) for n in range(3))]


def test_it_undoes_what_can_be_undone(pairs: list[tuple[Tensor, Tensor]]) -> None:
    rows = random(5, 8, seed=4)
    found = NormalEquations.summed(pairs).nearest(rows, longest=1e6)
    for after, before in pairs:
        assert torch.allclose(found @ after.T, rows @ before.T, atol=1e-9)


@pytest.mark.parametrize("longest", [0.05, 0.5, 1.0, 2.0])
def test_no_row_of_that_length_comes_closer(
    longest: float, pairs: list[tuple[Tensor, Tensor]]
) -> None:
    rows = random(4, 8, seed=4)
    found = NormalEquations.summed(pairs).nearest(rows, longest)
    assert (found.norm(dim=1) <= longest * (1 + 1e-9)).all()

    def distance(given: Tensor) -> Tensor:
        return torch.stack([(given @ a.T - rows @ b.T).square().sum(1) for a, b in pairs]).sum(0)

    for seed in range(200):
        other = found + 0.05 * longest * random(4, 8, seed=100 + seed)
        other *= (longest / other.norm(dim=1, keepdim=True)).clamp(max=1)
        assert (distance(found) <= distance(other) + 1e-12).all()


def test_it_lets_the_edited_model_answer_as_the_base(pico: Model) -> None:
    edit = erase(pico, CONCEPT, "uce", prior=None)
    one = target(pico, edit)
    own = torch.arange(4)  # of the first picture
    with pico.frozen(), one.deployed(), torch.no_grad():
        search = configured("closed-form", longest=1000.0).begin(one, [0], seed=0)
        named = distance(one, own, pico.condition([PROMPTS[0]])).item()
        search.step()
        found = search.found().condition
        assert found is not None
        assert search.over
        assert distance(one, own, found).item() < 1e-4 * named
    assert one.meter.calls == 8


def test_against_the_base_it_finds_the_prompt_itself(pico: Model) -> None:
    one = target(pico, None)
    with pico.frozen():
        search = configured("closed-form").begin(one, [1], seed=0)
        search.step()
    found = search.found().condition
    assert found is not None
    assert torch.allclose(found.rows, pico.encode([PROMPTS[1]]), atol=1e-4)
