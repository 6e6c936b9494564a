"""Models whose denoiser stays on disk: the same edits, from less of the files."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from expunge import Model, erase, load, testing
from expunge.cli import main
from expunge.edits import Edit
from expunge.errors import ExpungeError
from expunge.models import on_disk
from expunge.models.emoji import pipeline_path
from expunge.models.on_disk import Config, Skeleton, Tensors
from expunge.models.tokenizing import ClipTokenizer

PROMPTS = ("", "ghost", "a picture of a cat and a dog", "ghost " * 200)
SD2 = {"attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}


@pytest.fixture
def folder(pico_folder: Path, tmp_path: Path) -> Path:
    """A folder of its own, for tests that change files."""
    return Path(shutil.copytree(pico_folder, tmp_path / "pipe"))


def partly(source: object, **options: Any) -> Model:
    model = load(source, device="cpu", whole=False, **options)
    assert not model.whole
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("source", ["pico", "emoji"])
def test_rows_are_those_of_the_whole_model_bit_for_bit(
    source: str, dtype: torch.dtype, pico_folder: Path
) -> None:
    place = pico_folder if source == "pico" else source
    whole, part = load(place, dtype=dtype, device="cpu"), partly(place, dtype=dtype)
    assert torch.equal(part.encode(PROMPTS), whole.encode(PROMPTS))
    places = [whole.last_token(prompt) for prompt in PROMPTS]
    assert torch.equal(part.encode_rows(PROMPTS, places), whole.encode_rows(PROMPTS, places))


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_the_activations_are_those_of_transformers(activation: str, folder: Path) -> None:
    config = folder / "text_encoder" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "hidden_act": activation}))
    whole, part = load(folder, device="cpu"), partly(folder)
    assert torch.equal(part.encode(PROMPTS), whole.encode(PROMPTS))


def test_it_says_of_itself_what_the_whole_model_says(pico_folder: Path) -> None:
    for source in (pico_folder, "emoji"):
        whole, part = load(source, device="cpu"), partly(source)
        for said in (
            *("members", "device", "dtype", "bundled", "window", "text_width", "latent_shape"),
            *("image_size", "classes", "causal", "usual_sampling"),
        ):
            assert getattr(part, said) == getattr(whole, said), said
        assert part.text_fingerprint() == whole.text_fingerprint()
        assert part.fingerprint(part.members["all"]) == whole.fingerprint(whole.members["all"])
        assert {k: sum(p.numel() for p in v.parameters()) for k, v in part.networks.items()} == {
            k: sum(p.numel() for p in v.parameters()) for k, v in whole.networks.items()
        }


@pytest.mark.parametrize("more", [{}, SD2], ids=["1.4", "2.1"])
def test_layers_have_the_order_and_the_kinds_of_diffusers(more: dict[str, Any]) -> None:
    with torch.device("meta"):
        net = UNet2DConditionModel(**{**testing.SD14, **more})
    shapes = [(name, tuple(value.shape)) for name, value in net.named_parameters()]
    random.Random(0).shuffle(shapes)
    ordered: Any = SimpleNamespace(shapes=dict(sorted(shapes, key=lambda p: on_disk._place(p[0]))))
    kind = Config(_class_name="UNet2DConditionModel")
    found = Skeleton(ordered, kind, torch.float32, torch.device("cpu"))
    owners = dict(net.named_modules())

    def described(network: torch.nn.Module) -> list[tuple[str, torch.Size]]:
        return [(name, value.shape) for name, value in network.named_parameters()]

    assert described(found) == described(net)
    for name, layer in found.named_modules():
        for kinds in (torch.nn.Linear, torch.nn.Conv2d):
            assert isinstance(layer, kinds) == isinstance(owners[name], kinds), name


@pytest.mark.parametrize("method", ["uce", "rece", "trce", "negative-prompt"])
def test_an_edit_is_the_same_whether_the_denoiser_is_in_memory_or_on_disk(
    method: str, pico_folder: Path
) -> None:
    edits = [erase(model, "ghost", method) for model in (load(pico_folder), partly(pico_folder))]
    assert edits[0].id == edits[1].id


def test_an_erasure_reads_keys_and_values_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = set(load(folder).select("cross_attention.kv"))
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    read: list[tuple[str, str]] = []
    plain = Tensors.__call__

    def noted(self: Tensors, name: str) -> torch.Tensor:
        read.append((self.path.parent.name, name))
        return plain(self, name)

    monkeypatch.setattr(Tensors, "__call__", noted)
    output = tmp_path / "edit.safetensors"
    options = ["--model", str(folder), "--concept", "ghost", "--output", str(output)]
    assert main(["erase", *options]) == 0
    assert {name for part, name in read if part == "unet"} == names
    assert {part for part, _ in read} == {"unet", "text_encoder"}
    assert Edit.load(output).names


def test_an_erasure_imports_neither_diffusers_nor_transformers(
    pico_folder: Path, tmp_path: Path
) -> None:
    ClipTokenizer(pico_folder / "tokenizer")  # which transformers builds once
    script = f"""
import sys
from expunge.cli import main
output, model = {str(tmp_path / "edit.safetensors")!r}, {str(pico_folder)!r}
options = ["--concept", "ghost", "--set", "prior=none"]
assert main(["erase", "--model", model, "--output", output, *options]) == 0
heavy = {{"diffusers", "peft", "scipy", "torch._dynamo", "transformers"}}
print("heavy:", heavy & sys.modules.keys())
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout == "heavy: set()\n"


def test_importing_the_package_imports_nothing_heavy() -> None:
    script = """
import sys
import expunge
print("heavy:", {"torch", "diffusers", "transformers", "numpy", "pydantic"} & sys.modules.keys())
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout == "heavy: set()\n"


@pytest.mark.parametrize("how", ["written", "replaced", "removed"])
def test_a_file_that_changes_between_two_reads_is_refused(how: str, folder: Path) -> None:
    part = partly(folder)
    name = part.select("cross_attention.kv")[0]
    before = part.base_weight(name).clone()
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    if how == "removed":
        file.unlink()
    else:
        changed = {key: value + 1 for key, value in load_file(file).items()}
        other = file.with_name("other") if how == "replaced" else file
        save_file(changed, other)
        os.replace(other, file)
        os.utime(file, ns=(1, 1))
    with pytest.raises(ExpungeError, match="was changed while it was read"):
        part.base_weight(name)
    assert before.isfinite().all()


def test_a_text_encoder_that_changes_is_refused(folder: Path) -> None:
    part = partly(folder)
    (folder / "text_encoder" / "model.safetensors").touch()
    for use in (lambda: part.encode(["ghost"]), part.text_fingerprint):
        with pytest.raises(ExpungeError, match="was changed while it was read"):
            use()


def test_what_is_on_disk_neither_draws_nor_changes(pico_folder: Path) -> None:
    part = partly(pico_folder)
    edit = erase(part, "ghost")
    with pytest.raises(ExpungeError, match="on disk; load it whole"):
        edit.apply(part)
    with pytest.raises(ExpungeError, match="read prompts only"):
        part.predict(torch.zeros(1, *part.latent_shape), 1, part.condition(["ghost"]))
    with pytest.raises(ExpungeError, match="read prompts only"):
        erase(part, "ghost", "esd", iterations=1, contexts=["{}"], batch_size=2)


def another_class(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    index["text_encoder"] = ["transformers", "CLIPTextModelWithProjection"]
    (folder / "model_index.json").write_text(json.dumps(index))


def torch_files(folder: Path) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()


def learnt_tokens(folder: Path) -> None:
    pipe = load(folder).pipe
    pipe.tokenizer.add_tokens(["<cat>", "<cat>_1"])
    pipe.tokenizer.save_pretrained(folder / "tokenizer")


def entries_left_out(folder: Path) -> None:
    file = folder / "unet" / "config.json"
    config = json.loads(file.read_text())
    del config["in_channels"]
    file.write_text(json.dumps(config))


@pytest.mark.parametrize("change", [another_class, torch_files, learnt_tokens, entries_left_out])
def test_whatever_is_not_known_exactly_is_loaded_whole(change: Any, folder: Path) -> None:
    change(folder)
    assert load(folder, device="cpu", whole=False).whole


def test_a_broken_folder_is_refused_as_ever(folder: Path) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ExpungeError, match="can't load the model"):
        load(folder, whole=False)


def test_a_variant_is_read_where_it_is(folder: Path) -> None:
    load(folder).pipe.to(torch.float16).save_pretrained(folder, variant="fp16")
    part = partly(f"{folder}@fp16", dtype=torch.float16)
    whole = load(f"{folder}@fp16", dtype=torch.float16, device="cpu")
    names = part.members["all"]
    assert all(torch.equal(part.base_weight(n), whole.base_weight(n)) for n in names)
    assert part.pipe.unet.tensors.path.name == "diffusion_pytorch_model.fp16.safetensors"


def test_the_bundled_model_can_stay_on_disk() -> None:
    assert partly(pipeline_path()).bundled
