"""Distances of sets: torchmetrics' values, unbiased, and refused where they mean nothing."""

import math

import pytest
import torch
from torch import Tensor

from expunge.detectors import Identity
from expunge.detectors.frechet import frechet, frechet_distance, kid, squared_mmd
from expunge.errors import ExpungeError

NETWORK = Identity(name="toy", version="", sha256="0")
REAL = "real pictures"
BASE = "the base model's pictures"


def draws(n: int, width: int = 6, *, seed: int = 0, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=torch.Generator().manual_seed(99))
    return torch.randn(n, width, generator=generator) @ mix + shift


def test_frechet_has_the_value_of_torchmetrics() -> None:
    pytest.importorskip("torchmetrics", reason="the value to compare with")
    from torchmetrics.image.fid import _compute_fid

    one, two = draws(50).double(), draws(40, seed=1, shift=0.3).double()
    stats = one.mean(0), one.T.cov(), two.mean(0), two.T.cov()
    assert frechet_distance(*stats) == pytest.approx(_compute_fid(*stats).item(), rel=1e-10)
    assert frechet(one, two, network=NETWORK, to=REAL).value == frechet_distance(*stats)


def test_kid_has_the_value_of_torchmetrics() -> None:
    pytest.importorskip("torchmetrics", reason="the value to compare with")
    from torchmetrics.image.kid import poly_mmd

    one, two = draws(30).double(), draws(30, seed=1, shift=0.3).double()
    value, _ = squared_mmd(one, two)
    assert value == pytest.approx(poly_mmd(one, two).item(), rel=1e-10)
    assert kid(one, two, network=NETWORK, to=REAL).value == value


def test_frechet_of_normals_is_the_formula_of_their_moments() -> None:
    width = 4
    eye, zero, one = torch.eye(width), torch.zeros(width), torch.ones(width)
    assert frechet_distance(zero, eye, zero, eye) == pytest.approx(0, abs=1e-5)
    # |1|^2 + Tr(1 + 4 - 2 * 2)
    assert frechet_distance(zero, eye, one, 4 * eye) == pytest.approx(width + width, rel=1e-6)
    singular = torch.diag(torch.tensor([1.0, 0, 0, 0]))
    assert frechet_distance(zero, singular, zero, eye) == pytest.approx(1 + 4 - 2, rel=1e-6)


def test_the_jackknife_is_that_of_leaving_each_row_out() -> None:
    x, y = draws(12).double(), draws(15, seed=1).double()
    value, error = squared_mmd(x, y)
    drop = [torch.arange(len(rows)) for rows in (x, y)]
    without_x = torch.tensor([squared_mmd(x[drop[0] != i], y)[0] for i in range(len(x))])
    without_y = torch.tensor([squared_mmd(x, y[drop[1] != i])[0] for i in range(len(y))])
    variance = 11 * without_x.var(correction=0) + 14 * without_y.var(correction=0)
    assert error == pytest.approx(math.sqrt(variance), rel=1e-4)
    assert value == pytest.approx(squared_mmd(y, x)[0])


def test_blocks_do_not_change_the_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = draws(23).double(), draws(31, seed=1).double()
    whole = squared_mmd(x, y)
    monkeypatch.setattr("expunge.detectors.frechet._ROWS", 5)
    assert squared_mmd(x, y) == pytest.approx(whole)


def test_kid_is_unbiased_and_its_interval_covers_the_truth() -> None:
    values, covered = [], 0
    for seed in range(60):
        found = kid(
            draws(40, seed=2 * seed), draws(60, seed=2 * seed + 1), network=NETWORK, to=REAL
        )
        assert found.interval is not None
        values.append(found.value)
        covered += found.interval[0] <= 0 <= found.interval[1]
    spread = torch.tensor(values).std().item() / math.sqrt(len(values))
    assert abs(sum(values) / len(values)) < 3 * spread
    assert covered >= 54
    apart = kid(draws(40), draws(60, seed=1, shift=2.0), network=NETWORK, to=REAL)
    assert apart.interval is not None
    assert apart.interval[0] > 0


def test_the_name_says_the_network_and_the_reference() -> None:
    x = draws(20)
    names = {
        measure(x, x, network=NETWORK, to=to).name
        for measure in (frechet, kid)
        for to in (REAL, BASE)
    }
    assert names == {
        "Fréchet distance (toy) to real pictures",
        "Fréchet distance (toy) to the base model's pictures",
        "kernel distance (toy) to real pictures",
        "kernel distance (toy) to the base model's pictures",
    }
    found = kid(x, draws(30, seed=1), network=NETWORK, to=BASE)
    assert "n = 20, reference n = 30" in str(found)
    assert "95 % CI" in str(found)


def test_too_few_pictures_are_refused() -> None:
    with pytest.raises(ExpungeError, match=r"covariance is singular; use the kernel distance"):
        frechet(draws(6), draws(50), network=NETWORK, to=REAL)
    with pytest.raises(ExpungeError, match="singular"):
        frechet(draws(50), draws(6), network=NETWORK, to=REAL)
    frechet(draws(7), draws(7, seed=1), network=NETWORK, to=REAL)
    with pytest.raises(
        ExpungeError, match="at least 10 pictures in both sets, these have 9 and 20"
    ):
        kid(draws(9), draws(20), network=NETWORK, to=REAL)


@pytest.mark.parametrize("measure", [frechet, kid])
def test_features_that_do_not_compare_are_refused(measure) -> None:
    with pytest.raises(ExpungeError, match="not of one network"):
        measure(draws(20), draws(20, width=5), network=NETWORK, to=REAL)
    for bad in (math.nan, math.inf):
        broken = draws(20)
        broken[3, 2] = bad
        with pytest.raises(ExpungeError, match="not a finite number"):
            measure(draws(20), broken, network=NETWORK, to=REAL)
