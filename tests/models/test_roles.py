"""Selections: what they choose, in which order, and what is wrong with one that chooses nothing."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from expunge import ExpungeError, Model
from expunge import testing as build
from expunge.methods.esd.released import parameters
from expunge.models import roles
from expunge.models.stable_diffusion import StableDiffusion


@pytest.fixture(scope="module")
def sd14() -> StableDiffusion:
    with torch.device("meta"):
        return StableDiffusion(SimpleNamespace(unet=UNet2DConditionModel(**build.SD14)))


def millions(model: Model, names: tuple[str, ...]) -> float:
    return round(sum(model.denoiser.get_parameter(name).numel() for name in names) / 1e6, 2)


@pytest.mark.parametrize(
    ("selection", "tensors", "size"),
    [
        ("cross_attention.kv", 32, 19.17),
        ("cross_attention.q", 16, 12.39),
        ("cross_attention", 80, 43.96),
        ("self_attention", 80, 49.57),
        ("attention.qkv", 96, 68.73),
        ("not_cross_attention", 388, 815.36),
        ("layers", 468, 859.32),
        ("all", 686, 859.52),
        ("*.attn2.to_k.*", 16, 9.58),
        ("up.2.first | up.2.last & cross_attention", 10, 3.61),
        ("down.1.first | down.2.first & self_attention", 10, 8.19),
        ("all - cross_attention - output - time", 598, 813.5),
    ],
)
def test_what_selections_choose_in_sd14(
    sd14: StableDiffusion, selection: str, tensors: int, size: float
) -> None:
    names = sd14.select(selection)
    assert (len(names), millions(sd14, names)) == (tensors, size)


@pytest.mark.parametrize(
    ("variant", "method", "tensors", "size"),
    [
        ("compvis", "xattn", 80, 43.96),
        ("compvis", "noxattn", 598, 813.5),
        ("compvis", "full", 686, 859.52),
        ("diffusers-sd", "esd-x", 80, 43.96),
        ("diffusers-sd", "esd-x-strict", 32, 19.17),
        ("diffusers-sd", "esd-u", 388, 815.36),
    ],
)
def test_released_programs_train_what_they_trained(
    sd14: StableDiffusion, variant: str, method: str, tensors: int, size: float
) -> None:
    names = parameters(sd14, variant, method)
    assert len(names) == tensors
    assert millions(sd14, names) == pytest.approx(size, abs=0.05)


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.norm = nn.LayerNorm(2)
        self.second = nn.Conv2d(2, 2, 1, bias=False)
        self.last = nn.Linear(2, 2)


ROLES: roles.Roles = {"ends": "first.* | last.*", "weights": "*.weight", "inner": "all - ends"}


def chosen(selection: str) -> set[str]:
    return set(roles.parameters(Toy(), ROLES, selection))


def test_selections_join_from_left_to_right() -> None:
    ends = {"first.weight", "first.bias", "last.weight", "last.bias"}
    assert chosen("ends") == ends
    assert chosen("ends & weights") == {"first.weight", "last.weight"}
    assert chosen("inner | ends & weights") == {
        "first.weight", "last.weight", "norm.weight", "second.weight",
    }  # fmt: skip
    assert chosen("layers - ends") == {"second.weight"}
    assert chosen("all - layers") == {"norm.weight", "norm.bias"}
    assert chosen("all - norm.*") == chosen("layers")
    assert chosen("f[i]rst.????") == {"first.bias"}
    assert chosen("ends - ends") == set()


def test_the_order_is_that_of_the_modules_and_each_stands_once() -> None:
    everything = tuple(name for name, _ in Toy().named_parameters())
    assert roles.parameters(Toy(), ROLES, "last.* | weights | first.* | all") == everything


@pytest.mark.parametrize("selection", ["", "ends |", "ends weights", "ends|weights", "ends + all"])
def test_what_is_not_written_as_a_selection_is_refused(selection: str) -> None:
    with pytest.raises(ExpungeError, match=r"between roles|unknown role"):
        chosen(selection)


def test_an_unknown_role_lists_near_ones_and_an_empty_choice_what_there_is(pico: Model) -> None:
    with pytest.raises(ExpungeError, match=r"did you mean cross_attention"):
        pico.select("cross_atention")
    with pytest.raises(ExpungeError, match=r"selects no parameter of this model; .*all \(\d+\)"):
        pico.select("*.attn3.*")
    assert pico.parameters("*.attn3.*") == ()
    assert not any(names == () for names in pico.members.values())
