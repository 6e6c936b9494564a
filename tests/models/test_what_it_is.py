"""Pipelines that are not what they seem: refused before they begin, or seen as what they are."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from expunge import Concept, ExpungeError, Model, erase, evaluate, generate, load, testing
from expunge.doctor import examine
from expunge.generation.store import ImageRequest

GHOST = Concept(target="ghost", anchor="dog")
CHANNELS = (
    r"takes 9 channels and the VAE gives 4 \(a model for inpainting\); methods in closed form"
)
GUIDED = r"takes the guidance scale as an input .* methods in closed form work"


def with_unet(folder: Path, **changed: object) -> Model:
    usual = {name: value for name, value in testing.unet().config.items() if name[0] != "_"}
    torch.manual_seed(3)
    return load(testing.pipeline(folder, UNet2DConditionModel.from_config({**usual, **changed})))


ODD = [({"in_channels": 9}, CHANNELS), ({"time_cond_proj_dim": 16}, GUIDED)]


@pytest.mark.parametrize(("changed", "reason"), ODD)
def test_a_closed_form_works_where_drawing_does_not(
    changed: dict[str, object], reason: str, tmp_path: Path
) -> None:
    model = with_unet(tmp_path, **changed)
    for method in ("uce", "rece"):
        with erase(model, GHOST, method).applied(model):
            pass


DRAWS: dict[str, Callable[[Model, Path], object]] = {
    "training": lambda model, place: erase(model, GHOST, "esd", checkpoints=place),
    "drawing": lambda model, place: generate(
        model, [ImageRequest(prompt="ghost", seed=0, case_number="0")], place
    ),
    "measuring": lambda model, place: evaluate(model, erase(model, GHOST), folder=place),
    "examining": lambda model, place: examine(model),
}


@pytest.mark.parametrize("asked", DRAWS)
@pytest.mark.parametrize(("changed", "reason"), ODD)
def test_what_draws_or_trains_is_refused_before_it_begins(
    changed: dict[str, object], reason: str, asked: str, tmp_path: Path
) -> None:
    model, place = with_unet(tmp_path, **changed), tmp_path / "place"
    with pytest.raises(ExpungeError, match=reason):
        DRAWS[asked](model, place)
    assert not place.exists()


def test_projections_left_over_from_fusing_are_nobodys(pico: Model) -> None:
    before = {role: pico.select(role) for role in pico.members}
    print_of_all = pico.fingerprint()
    pico.pipe.fuse_qkv_projections(vae=False)
    pico.pipe.unfuse_qkv_projections(vae=False)
    names = [name for name, _ in pico.denoiser.named_parameters()]
    assert any(".to_kv." in name for name in names)
    assert any(".to_qkv." in name for name in names)
    assert {role: pico.select(role) for role in pico.members} == before
    assert pico.fingerprint() == print_of_all


def test_fused_after_apply_an_edit_comes_out_once_unfused(pico: Model) -> None:
    edit = erase(pico, GHOST) + testing.membrane(pico, GHOST)
    before = {name: pico.base_weight(name).clone() for name in edit.names}
    edit.apply(pico)
    pico.pipe.fuse_qkv_projections(vae=False)
    with pytest.raises(ExpungeError, match="unfuse_qkv_projections"):
        edit.revert(pico)
    pico.pipe.unfuse_qkv_projections(vae=False)
    edit.revert(pico)
    for name, weight in before.items():
        assert torch.equal(pico.denoiser.get_parameter(name), weight)


@pytest.mark.parametrize("method", ["esd", "spm", "cpe"])
def test_no_training_begins_on_fused_projections(pico: Model, method: str) -> None:
    pico.pipe.fuse_qkv_projections(vae=False)
    with pytest.raises(ExpungeError, match="unfuse_qkv_projections"):
        erase(pico, GHOST, method)
