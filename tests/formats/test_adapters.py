"""A LoRA of another program is an edit that adds the same, alpha and ranks included."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from expunge import Concept, Edit, ExpungeError, Model, erase
from expunge.edits.applied import edited_weights
from expunge.formats import adapters, lora
from expunge.testing import random

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
CONV = "down_blocks.0.resnets.0.conv1"


@pytest.fixture
def edit(pico: Model) -> Edit:
    return erase(pico, Concept(target="ghost", anchor="dog"))


@pytest.mark.parametrize("layout", ["lora", "kohya", "peft"])
def test_what_is_exported_is_imported(
    pico: Model, edit: Edit, tmp_path: Path, layout: lora.Layout
) -> None:
    path = tmp_path / ("folder" if layout == "peft" else "file.safetensors")
    lora.save(edit, pico, path, layout)
    assert adapters.recognised(path)
    found = adapters.load(path, pico)
    assert found.components[0].payload.form == "low_rank"
    wanted = edited_weights(pico, edit.components, edit.names)
    for name, weight in edited_weights(pico, found.components, edit.names).items():
        torch.testing.assert_close(weight, wanted[name], rtol=0, atol=1e-6)


def weights(pico: Model, layer: str, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    shape = pico.base_weight(f"{layer}.weight").shape
    ends = (1, 1) if len(shape) == 4 else ()
    return random(shape[0], rank, *ends, seed=1), random(rank, *shape[1:], seed=2)


@pytest.mark.parametrize("layer", [LAYER, CONV])
@pytest.mark.parametrize(("alpha", "scale"), [(2.0, 0.5), (None, 1.0)])
@pytest.mark.parametrize("style", ["kohya", "diffusers"])
def test_alpha_over_rank_scales_the_product(
    pico: Model, tmp_path: Path, layer: str, alpha: float | None, scale: float, style: str
) -> None:
    up, down = weights(pico, layer, rank=4)
    key = f"lora_unet_{layer.replace('.', '_')}" if style == "kohya" else f"unet.{layer}"
    ends = ("lora_up", "lora_down") if style == "kohya" else ("lora_B", "lora_A")
    tensors = {f"{key}.{ends[0]}.weight": up, f"{key}.{ends[1]}.weight": down}
    if alpha is not None:
        tensors[f"{key}.alpha"] = torch.tensor(alpha)
    save_file(tensors, tmp_path / "lora.safetensors")
    found = adapters.load(tmp_path / "lora.safetensors", pico)
    name = f"{layer}.weight"
    assert found.names == (name,)
    base = pico.base_weight(name)
    wanted = base + scale * (up.flatten(1) @ down.flatten(1)).view(base.shape)
    with found.applied(pico):
        torch.testing.assert_close(pico.denoiser.get_parameter(name).detach(), wanted)


def test_a_peft_folder_has_its_scale_in_the_configuration(
    pico: Model, edit: Edit, tmp_path: Path
) -> None:
    lora.save(edit, pico, tmp_path / "peft", "peft")
    place = tmp_path / "peft" / adapters.CONFIG
    config = json.loads(place.read_text())
    rank = config["r"]
    before = adapters.read(tmp_path / "peft", pico)
    place.write_text(json.dumps({**config, "lora_alpha": 3 * rank, "alpha_pattern": {}}))
    for name, layer in adapters.read(tmp_path / "peft", pico).items():
        scale = 3 * rank / len(layer.down)
        torch.testing.assert_close(layer.up, scale * before[name].up)
    (first, *_) = before
    pattern = {first.removesuffix(".weight"): 5.0}
    place.write_text(json.dumps({**config, "alpha_pattern": pattern}))
    layer = adapters.read(tmp_path / "peft", pico)[first]
    torch.testing.assert_close(layer.up, 5 / len(layer.down) * before[first].up)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"lora_te_text_model_x.lora_up.weight": torch.ones(2, 2)}, "text encoder too"),
        ({"lora_unet_nowhere.lora_up.weight": torch.ones(2, 2)}, "no layer 'nowhere'"),
        ({"lora_unet_x.hada_w1_a": torch.ones(2, 2)}, "no part of a plain LoRA"),
    ],
)
def test_what_is_no_lora_of_this_model_is_refused(
    pico: Model, edit: Edit, tmp_path: Path, changed: dict[str, torch.Tensor], reason: str
) -> None:
    path = tmp_path / "lora.safetensors"
    lora.save(edit, pico, path, "kohya")
    save_file({**load_file(path), **changed}, path)
    with pytest.raises(ExpungeError, match=reason):
        adapters.load(path, pico)
