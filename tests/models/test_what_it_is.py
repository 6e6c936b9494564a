"""Pipelines that are not what they seem: refused before they begin, or seen as what they are."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline, UNet2DConditionModel
from PIL import Image

from expunge import (
    Concept,
    Edit,
    ExpungeError,
    Model,
    Policy,
    erase,
    evaluate,
    generate,
    load,
    testing,
)
from expunge.cli import main
from expunge.doctor import examine
from expunge.generation.store import ImageRequest
from expunge.methods import configured

GHOST = Concept(target="ghost", anchor="dog")
CHANNELS = (
    r"takes 9 channels and the VAE gives 4 \(a model for inpainting\); methods in closed form"
)
GUIDED = r"takes the guidance scale as an input .* methods in closed form work"


def odd_unet(**changed: object) -> UNet2DConditionModel:
    usual = {name: value for name, value in testing.unet().config.items() if name[0] != "_"}
    torch.manual_seed(3)
    net: UNet2DConditionModel = UNet2DConditionModel.from_config({**usual, **changed})
    return net


def with_unet(folder: Path, **changed: object) -> Model:
    return load(testing.pipeline(folder, odd_unet(**changed)))


def inpainting(folder: Path) -> StableDiffusionInpaintPipeline:
    parts = testing.pipeline(folder, odd_unet(in_channels=9)).components
    return StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)


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


@pytest.mark.parametrize(("changed", "reason"), ODD)
def test_an_examination_says_what_works_and_what_does_not(
    changed: dict[str, object], reason: str, tmp_path: Path
) -> None:
    model = with_unet(tmp_path, **changed)
    found = examine(model, Policy.of([GHOST]))
    assert re.search(reason, found.model.no_drawing or "")
    assert {"uce", "rece"} <= {cost.method for cost in found.costs}
    assert "mace" not in {cost.method for cost in found.costs}
    [refusal] = examine(model, Policy.of([GHOST]), configured("esd")).refusals
    assert re.search(reason, refusal.reason)


def test_what_draws_has_nothing_to_say_against_it(pico: Model) -> None:
    assert examine(pico).model.no_drawing is None


def test_an_inpainting_pipeline_shows_what_was_erased_in_closed_form(tmp_path: Path) -> None:
    pipe = inpainting(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    model = load(pipe)
    edit = erase(model, GHOST, "uce")
    edit.save(tmp_path / "edit")
    loaded = Edit.load(tmp_path / "edit")
    before = inpainted(pipe)
    with loaded.applied(model):
        assert not torch.equal(inpainted(pipe), before)
    assert torch.equal(inpainted(pipe), before)
    with pytest.raises(ExpungeError, match=CHANNELS):
        erase(model, GHOST, "esd")


def inpainted(pipe: StableDiffusionInpaintPipeline) -> torch.Tensor:
    """What the user's own pipeline paints into a grey picture, ``[1, height, width, 3]``."""
    size = {"height": 16, "width": 16}
    grey, mask = Image.new("RGB", (16, 16), "grey"), Image.new("L", (16, 16), 255)
    made = pipe(
        "a picture of ghost",
        grey,
        mask,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
        **size,
    )
    return torch.from_numpy(made.images)


def test_an_inpainting_folder_is_loaded_and_drawing_refused_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inpainting(tmp_path).save_pretrained(tmp_path / "model")
    place = ["--model", str(tmp_path / "model")]
    words = ["--concept", "ghost", "--anchor", "dog"]
    main(["erase", *place, *words, "--output", str(tmp_path / "edit.safetensors")])
    assert Edit.load(tmp_path / "edit.safetensors").concepts[0].target == "ghost"
    main(["doctor", *place])
    assert "a model for inpainting" in " ".join(capsys.readouterr().out.split())


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
