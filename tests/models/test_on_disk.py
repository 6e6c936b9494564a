"""Models whose denoiser stays on disk: the same edits, from less of the files."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from expunge import Model, erase, load, tensors, testing
from expunge.cli import main
from expunge.edits import Edit
from expunge.errors import ExpungeError
from expunge.models import hashing, on_disk
from expunge.models.emoji import pipeline_path
from expunge.models.on_disk import Config, Skeleton
from expunge.models.stored import Numbers
from expunge.models.tokenizing import ClipTokenizer
from expunge.tensors import Slot, Unread

PROMPTS = ("", "ghost", "a picture of a cat and a dog", "ghost " * 200)
CPU = torch.device("cpu")
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
    slots = {name: Slot(0, torch.float32, shape) for name, shape in shapes}
    numbers = Numbers(cast(Unread, SimpleNamespace(slots=slots)), torch.float32, CPU)
    kind = Config(_class_name="UNet2DConditionModel")
    found = Skeleton(numbers, kind, sorted(slots, key=on_disk._place))
    owners = dict(net.named_modules())

    def described(network: torch.nn.Module) -> list[tuple[str, torch.Size]]:
        return [(name, value.shape) for name, value in network.named_parameters()]

    assert described(found) == described(net)
    for name, layer in found.named_modules():
        for kinds in (torch.nn.Linear, torch.nn.Conv2d):
            assert isinstance(layer, kinds) == isinstance(owners[name], kinds), name


@pytest.mark.parametrize("method", ["uce", "rece", "trce", "negative-prompt", "sld", "safree"])
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
    copied, mapped = Unread.__getitem__, Unread.mapped

    def noted(plain: Callable[[Unread, str], torch.Tensor]) -> Any:
        def reads(self: Unread, name: str) -> torch.Tensor:
            read.append((Path(self.path).parent.name, name))
            return plain(self, name)

        return reads

    monkeypatch.setattr(Unread, "__getitem__", noted(copied))
    monkeypatch.setattr(Unread, "mapped", noted(mapped))
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


def test_a_file_that_is_written_to_between_two_reads_is_refused(folder: Path) -> None:
    part = partly(folder)
    name = part.select("cross_attention.kv")[0]
    before = part.base_weight(name)
    kept = before.clone()
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    with file.open("r+b") as opened:
        opened.seek(-4, os.SEEK_END)
        opened.write(bytes(4))
    os.utime(file, ns=(1, 1))
    for use in (lambda: part.base_weight(name), lambda: part.fingerprint([name])):
        with pytest.raises(ExpungeError, match="was changed since it was loaded"):
            use()
    assert torch.equal(before, kept)


@pytest.mark.parametrize("how", ["replaced", "removed"])
def test_a_file_that_is_replaced_between_two_reads_is_read_as_it_was(
    how: str, folder: Path
) -> None:
    part = partly(folder)
    name = part.select("cross_attention.kv")[0]
    before, print_ = part.base_weight(name), part.fingerprint([name])
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    changed = {key: value + 1 for key, value in load_file(file).items()}
    file.unlink()
    if how == "replaced":
        save_file(changed, file)
    assert torch.equal(part.base_weight(name), before)
    assert part.fingerprint([name]) == print_


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], int]:
    """How often a file was read since the last call, by processes with a cache of their own."""
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hashing, "MUCH", 64)
    monkeypatch.setattr(hashing, "_known", type(hashing._known)())
    count, plain = [0], tensors.map_bytes

    def counted(*args: Any) -> torch.Tensor:
        count[0] += 1
        return plain(*args)

    def told() -> int:
        found, count[0] = count[0], 0
        hashing._known.clear()
        return found

    monkeypatch.setattr(tensors, "map_bytes", counted)
    return told


def facts(model: Model) -> tuple[object, ...]:
    names = model.select("cross_attention.kv")
    weights = model.fingerprint(names), model.roundings(names)
    return *weights, model.text_fingerprint(), model.text_roundings()


def test_fingerprints_of_a_file_are_known_again_without_reading_it(
    folder: Path, reads: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = facts(load(folder, device="cpu"))
    facts(partly(folder))
    assert reads() > 0
    facts(partly(folder))
    assert reads() > 0, "a file that was just written may be written again at the same time"
    monkeypatch.setattr(tensors, "RECENT", 0)
    assert facts(partly(folder)) == wanted
    reads()
    assert facts(partly(folder)) == wanted
    assert reads() == 0
    assert facts(partly(folder, dtype=torch.bfloat16)) != wanted


def test_a_file_of_the_same_size_and_time_is_another_one(
    folder: Path, reads: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensors, "RECENT", 0)
    before = facts(partly(folder))
    for part in ("unet/diffusion_pytorch_model", "text_encoder/model"):
        file = folder / f"{part}.safetensors"
        times = file.stat().st_atime_ns, file.stat().st_mtime_ns
        values = {name: value + 1 for name, value in load_file(file).items()}
        save_file(values, file, metadata={"format": "pt"})
        os.utime(file, ns=times)
    reads()
    after = facts(partly(folder))
    assert reads() > 0
    assert all(one != other for one, other in zip(before, after, strict=True))
    assert after == facts(load(folder, device="cpu"))


def test_a_text_encoder_that_changes_is_refused(folder: Path) -> None:
    part = partly(folder)
    (folder / "text_encoder" / "model.safetensors").touch()
    for use in (lambda: part.encode(["ghost"]), part.text_fingerprint):
        with pytest.raises(ExpungeError, match="was changed since it was loaded"):
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
    assert (
        Path(part.pipe.unet.numbers.tensors.path).name == "diffusion_pytorch_model.fp16.safetensors"
    )


def test_the_bundled_model_can_stay_on_disk() -> None:
    assert partly(pipeline_path()).bundled
