import json
from pathlib import Path

import pytest
import torch
from changes import edit_of, matrices, predicted, random
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import CLIPTextModel

from expunge import Edit, ExpungeError, Model, load
from expunge import testing as build
from expunge.edits import Dense
from expunge.edits.applied import Applied
from expunge.formats import compvis, merged
from expunge.formats.writing import RECORD


@pytest.fixture
def edit(pico: Model) -> Edit:
    """Every matrix and convolution changes."""
    return edit_of(Dense({n: random(*w.shape) for n, w in matrices(pico).items()}), pico)


def same_weights(one: StableDiffusionPipeline, two: StableDiffusionPipeline) -> bool:
    parts = [(getattr(one, n), getattr(two, n)) for n in ("unet", "vae", "text_encoder")]
    states = [(first.state_dict(), second.state_dict()) for first, second in parts]
    return all(
        first.keys() == second.keys()
        and all(torch.equal(weight, second[name]) for name, weight in first.items())
        for first, second in states
    )


def test_a_merged_folder_is_the_edited_pipeline(pico: Model, edit: Edit, tmp_path: Path) -> None:
    before = {n: w.clone() for n, w in pico.denoiser.state_dict().items()}
    merged.save_pipeline(edit, pico, tmp_path / "merged")
    assert all(torch.equal(w, before[n]) for n, w in pico.denoiser.state_dict().items())
    read = load(tmp_path / "merged", device="cpu")
    with edit.applied(pico):
        assert same_weights(read.pipe, pico.pipe)
        assert torch.equal(predicted(read), predicted(pico))
    assert not list((tmp_path / "merged").rglob("*.bin"))
    record = json.loads((tmp_path / "merged" / "expunge.json").read_text())
    assert (record["edit"], record["provenance"][0]["method"]) == (edit.id, "made up")


def test_a_merged_folder_keeps_the_precision(
    pico: Model, edit: Edit, pico_folder: Path, tmp_path: Path
) -> None:
    half = load(pico_folder, device="cpu", dtype=torch.float16)
    merged.save_pipeline(edit, half, tmp_path / "merged")
    for part in ("unet", "vae"):
        state = load_file(tmp_path / "merged" / part / "diffusion_pytorch_model.safetensors")
        assert {weight.dtype for weight in state.values()} == {torch.float16}
    assert merged.stored_dtype(load(tmp_path / "merged", device="cpu")) == torch.float16
    assert merged.stored_dtype(pico) == torch.float32


def with_open_clip(folder: Path) -> Path:
    """A pipeline with the text encoder of Stable Diffusion 2.x, small."""
    pipe = build.pipeline(folder)
    config = pipe.text_encoder.config
    config.hidden_act = "gelu"
    torch.manual_seed(3)
    pipe.text_encoder = CLIPTextModel(config)
    pipe.save_pretrained(folder / "pipe")
    return folder / "pipe"


@pytest.mark.parametrize("version", [1, 2])
def test_diffusers_reads_the_single_file_to_the_same_weights(
    version: int, pico_folder: Path, edit: Edit, tmp_path: Path
) -> None:
    folder = pico_folder if version == 1 else with_open_clip(tmp_path)
    model, path = load(folder, device="cpu"), tmp_path / "merged.safetensors"
    merged.save_checkpoint(edit, model, path)
    read = StableDiffusionPipeline.from_single_file(
        str(path), config=str(folder), local_files_only=True
    )
    with edit.applied(model):
        assert same_weights(read, model.pipe)
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()[RECORD])["edit"] == edit.id
        names = set(file.keys())
    text = {
        1: "transformer.text_model.embeddings.",
        2: "model.transformer.resblocks.0.attn.in_proj_",
    }
    assert any(name.startswith(f"cond_stage_model.{text[version]}") for name in names)
    assert {name.split(".")[0] for name in names} == {
        "model",
        "first_stage_model",
        "cond_stage_model",
    }


def test_every_name_of_the_real_unet_has_its_place() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**build.SD14)
    names = compvis.ldm_names(unet.state_dict())
    assert len(set(names.values())) == len(names) == 686
    assert all(compvis.diffusers_name(theirs) == ours for ours, theirs in names.items())
    known = {
        "conv_in.bias": "input_blocks.0.0.bias",
        "down_blocks.0.downsamplers.0.conv.weight": "input_blocks.3.0.op.weight",
        "down_blocks.1.resnets.0.conv_shortcut.weight": "input_blocks.4.0.skip_connection.weight",
        "mid_block.resnets.1.norm2.bias": "middle_block.2.out_layers.0.bias",
        "up_blocks.0.upsamplers.0.conv.weight": "output_blocks.2.1.conv.weight",
        "up_blocks.1.upsamplers.0.conv.weight": "output_blocks.5.2.conv.weight",
        "up_blocks.3.attentions.2.transformer_blocks.0.norm1.weight": (
            "output_blocks.11.1.transformer_blocks.0.norm1.weight"
        ),
    }
    for ours, theirs in known.items():
        assert names[ours] == f"model.diffusion_model.{theirs}"


def test_what_the_single_file_cannot_hold_is_refused(
    pico: Model, edit: Edit, tmp_path: Path
) -> None:
    with pytest.raises(ExpungeError, match=r"no place for the UNet's class_embedding\.weight"):
        compvis.ldm_names(["class_embedding.weight"])
    with pytest.raises(ExpungeError, match="more than 23 layers"):
        compvis.open_clip({"encoder.layers.23.layer_norm1.bias": torch.zeros(2)})
    pico.pipe.text_encoder.config.hidden_act = "relu"
    with pytest.raises(ExpungeError, match=r"activation is relu\); export --to diffusers"):
        merged.save_checkpoint(edit, pico, tmp_path / "x.safetensors")
    assert not any(tmp_path.iterdir())
    assert not Applied.to(pico).components


def test_an_edited_model_another_base_and_a_used_place_are_refused(
    pico: Model, edit: Edit, tmp_path: Path
) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    with pytest.raises(ExpungeError, match="exists already"):
        merged.save_pipeline(edit, pico, taken)
    for save in (merged.save_pipeline, merged.save_checkpoint):
        with edit.applied(pico), pytest.raises(ExpungeError, match="revert it"):
            save(edit, pico, tmp_path / "x.safetensors")
    with torch.no_grad():
        pico.denoiser.get_parameter(edit.names[0])[0, 0] += 0.1
    for save in (merged.save_pipeline, merged.save_checkpoint):
        with pytest.raises(ExpungeError, match=r"the weights of .* differ from it"):
            save(edit, pico, tmp_path / "x.safetensors")
    assert [path.name for path in tmp_path.rglob("*")] == ["taken", "mine.txt"]


def test_a_write_that_fails_leaves_nothing(
    pico: Model, edit: Edit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(state: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left")

    def half_a_folder(folder: Path, **options: object) -> None:
        (folder / "unet").mkdir()
        (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(merged, "save_file", full_disk)
    monkeypatch.setattr(pico.pipe, "save_pretrained", half_a_folder)
    for save in (merged.save_pipeline, merged.save_checkpoint):
        with pytest.raises(OSError, match="no space"):
            save(edit, pico, tmp_path / "x.safetensors")
    assert not any(tmp_path.iterdir())
    assert not Applied.to(pico).components
