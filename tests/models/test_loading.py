"""What users have is loaded, or refused with what to do."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from expunge import Concept, Edit, ExpungeError, Model, erase, load
from expunge.cli import main
from expunge.formats import lora, merged, published

GHOST = Concept(target="ghost", anchor="dog")


def saved(model: Model, folder: Path, *variants: str) -> Path:
    for variant in variants:
        model.pipe.save_pretrained(folder, variant=variant)
    return folder


def equal(one: Model, two: Model) -> bool:
    return all(
        torch.equal(weight, two.networks[part].get_parameter(name))
        for part, network in one.networks.items()
        for name, weight in network.named_parameters()
    )


@pytest.mark.parametrize("variant", ["fp16", "bf16", "non_ema"])
def test_a_folder_of_one_variant_is_read(pico: Model, tmp_path: Path, variant: str) -> None:
    folder = saved(pico, tmp_path / "model", variant)
    assert equal(load(folder, device="cpu"), pico)
    with pytest.raises(ExpungeError, match="nothing is erased"):
        published.load(folder / "unet", pico)


def test_one_network_of_a_variant_is_read_beside_the_others(pico: Model, tmp_path: Path) -> None:
    pico.pipe.save_pretrained(tmp_path)
    (file,) = (tmp_path / "unet").glob("*.safetensors")
    file.rename(file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert equal(load(tmp_path, device="cpu"), pico)


def test_of_two_variants_the_user_chooses(pico: Model, tmp_path: Path) -> None:
    folder = saved(pico, tmp_path / "model", "fp16", "bf16")
    with pytest.raises(ExpungeError, match="variants bf16 and fp16, and none without"):
        load(folder)
    assert equal(load(f"{folder}@fp16", device="cpu"), pico)
    with pytest.raises(ExpungeError, match="no files of the variant 'ema'; it has bf16, fp16"):
        load(f"{folder}@ema")


def test_without_a_common_variant_the_networks_are_named(pico: Model, tmp_path: Path) -> None:
    folder = saved(pico, tmp_path / "model", "fp16")
    (file,) = (folder / "unet").glob("*.safetensors")
    file.rename(file.with_name("diffusion_pytorch_model.bf16.safetensors"))
    with pytest.raises(ExpungeError, match=r"no variant has all networks .*unet bf16"):
        load(folder)


def test_the_usual_files_go_first(pico: Model, tmp_path: Path) -> None:
    pico.pipe.save_pretrained(tmp_path)
    saved(pico, tmp_path, "fp16")
    assert equal(load(tmp_path, device="cpu"), pico)


def test_an_export_keeps_the_precision_of_a_variant(pico: Model, tmp_path: Path) -> None:
    pico.cast(torch.float16)
    folder = saved(pico, tmp_path / "model", "fp16")
    assert merged.stored_dtype(load(folder, device="cpu")) == torch.float16


# --- single files


@pytest.fixture
def single(pico: Model, tmp_path: Path) -> Path:
    """The edited model in one file; its header names the base."""
    path = tmp_path / "single.safetensors"
    merged.save_checkpoint(erase(pico, GHOST), pico, path)
    return path


@pytest.mark.parametrize("named", [True, False])
def test_a_single_file_is_read(pico: Model, pico_folder: Path, single: Path, named: bool) -> None:
    found = load(f"{single}@{pico_folder}" if named else single, device="cpu")
    with erase(pico, GHOST).applied(pico):
        assert equal(found, pico)


def test_a_single_file_is_imported_as_the_edit_that_it_is(pico: Model, single: Path) -> None:
    edit, found = erase(pico, GHOST), published.load(single, pico)
    assert set(found.names) == set(edit.names)
    assert found.components[0].payload.form == "shared_matrix"


def test_a_checkpoint_of_torch_is_read_without_running_code(
    pico: Model, pico_folder: Path, single: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    torch.save({"state_dict": load_file(single)}, tmp_path / "model.ckpt")
    with erase(pico, GHOST).applied(pico):
        assert equal(load(f"{tmp_path / 'model.ckpt'}@{pico_folder}", device="cpu"), pico)
    torch.save({"state_dict": load_file(single), "x": Path("/")}, tmp_path / "code.ckpt")
    with pytest.raises(ExpungeError, match=r"could run code|more than tensors|can't load"):
        load(f"{tmp_path / 'code.ckpt'}@{pico_folder}")
    with pytest.raises(ExpungeError, match=r"single file, .*model.ckpt@FOLDER"):
        load(tmp_path / "model.ckpt")


def test_files_that_are_no_model_are_named(pico: Model, tmp_path: Path) -> None:
    edit = erase(pico, GHOST)
    edit.save(tmp_path / "edit.safetensors")
    lora.save(edit, pico, tmp_path / "lora.safetensors")
    published.save(edit, pico, tmp_path / "unet.safetensors")
    save_file({"x": torch.ones(1)}, tmp_path / "x.safetensors")
    for name, reason in (
        ("edit", "an edit, not a model"),
        ("lora", "a LoRA, not a model"),
        ("unet", "no whole model, .* expunge import"),
        ("x", "no whole model"),
    ):
        with pytest.raises(ExpungeError, match=reason):
            load(tmp_path / f"{name}.safetensors")


# --- paths


def test_a_path_at_home_is_found(
    pico: Model, pico_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(pico_folder, tmp_path / "pipe")
    assert equal(load("~/pipe", device="cpu"), pico)
    options = ["--model", "~/pipe", "--concept", "ghost", "--anchor", "dog"]
    assert main(["erase", *options, "--output=~/edit.safetensors"]) == 0
    assert Edit.load(tmp_path / "edit.safetensors").names == erase(pico, GHOST).names


def test_a_folder_that_is_not_there_is_not_looked_for_at_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    for place in ("models/sd15", "~/nowhere", "one/two/three", "nowhere.safetensors"):
        with pytest.raises(ExpungeError, match=r"no model at .*; give 'emoji', a folder"):
            load(place)
