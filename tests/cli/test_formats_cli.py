from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from expunge import Concept, Edit, erase, load
from expunge.cli import main


@pytest.fixture(scope="module")
def edits(pico_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ghost.safetensors and dog.safetensors, edits of pico."""
    folder = tmp_path_factory.mktemp("edits")
    for target in ("ghost", "dog"):
        edit = erase(load(pico_folder, device="cpu"), Concept(target=target, anchor="man"))
        edit.save(folder / f"{target}.safetensors")
    return folder


def told(arguments: list[object], capsys: pytest.CaptureFixture[str], code: int = 0) -> list[str]:
    """The lines on the error stream."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == code
    output = capsys.readouterr()
    assert output.out == ""
    return output.err.splitlines()


@pytest.mark.parametrize("to", ["lora", "kohya", "peft"])
def test_a_lora_tells_its_rank_and_what_it_misses(
    to: str, edits: Path, pico_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / ("lora" if to == "peft" else "lora.safetensors")
    export = ["export", edits / "ghost.safetensors", "--model", pico_folder, "--to", to]
    written, use = told([*export, "--output", output], capsys)
    rows = 15  # from the one word to the end of the 16
    assert written.startswith(f"{output}: LoRA of 8 matrices, rank {rows}, float32, off by ")
    assert float(written.split("off by ")[1].split()[0]) < 1e-7
    assert written.endswith(" MB")
    assert str(output) in use
    small = tmp_path / ("small" if to == "peft" else "small.safetensors")
    capped = [*export, "--output", small, "--rank", 2, "--dtype", "float16"]
    written = told(capped, capsys)[0]
    assert "rank 2, float16" in written
    assert float(written.split("off by ")[1].split()[0]) > 1e-3


def test_the_whole_model_and_the_weights_alone(
    edits: Path, pico_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit, base = Edit.load(edits / "ghost.safetensors"), load(pico_folder, device="cpu")
    export = ["export", edits / "ghost.safetensors", "--model", pico_folder, "--to"]
    files = [tmp_path / name for name in ("pipe", "one.safetensors", "part.safetensors")]
    for to, path in zip(("diffusers", "checkpoint", "weights"), files, strict=True):
        written, _ = told([*export, to, "--output", path], capsys)
        assert "8 parameters edited, float32" in written or "8 edited parameters" in written
    folder, one, part = files
    single = StableDiffusionPipeline.from_single_file(
        str(one), config=str(pico_folder), local_files_only=True
    )
    merged, weights = load(folder, device="cpu"), load_file(part)
    with edit.applied(base):
        for name in edit.names:
            wanted = base.denoiser.get_parameter(name)
            assert torch.equal(merged.denoiser.get_parameter(name), wanted)
            assert torch.equal(single.unet.get_parameter(name), wanted)
            assert torch.equal(weights[name], wanted)
    assert told([*export, "diffusers", "--output", folder], capsys, 2) == [
        f"error: {folder}: exists already; give the name of a new folder"
    ]


def test_a_whole_model_keeps_the_precision_of_its_files(
    edits: Path, pico_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = load(pico_folder, device="cpu", dtype=torch.float16)
    half.pipe.save_pretrained(tmp_path / "half")
    export = ["export", edits / "ghost.safetensors", "--model", tmp_path / "half"]
    command = [*export, "--to", "checkpoint", "--output", tmp_path / "one.safetensors"]
    assert "float16" in told(command, capsys)[0]
    written = load_file(tmp_path / "one.safetensors")
    assert {weight.dtype for weight in written.values()} == {torch.float16}
    assert "float32" in told([*command, "--dtype", "float32"], capsys)[0]


def test_what_was_exported_comes_back(
    edits: Path, pico_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part, back = tmp_path / "part.safetensors", tmp_path / "back.safetensors"
    export = ["export", edits / "ghost.safetensors", "--model", pico_folder, "--to", "weights"]
    told([*export, "--output", part], capsys)
    arguments = ["import", part, "--model", pico_folder, "--output", back]
    (line,) = told([*arguments, "--concept", "ghost", "--kind", "character"], capsys)
    assert "8 of 8 parameters differ" in line
    assert "all by one matrix" in line
    assert float(line.split("off by ")[1].split()[0]) < 1e-6
    edit = Edit.load(back)
    assert [(c.target, c.kind) for c in edit.concepts] == [("ghost", "character")]
    assert edit.provenance[0].settings["file"] == "part.safetensors"


def test_a_sum_and_what_is_left_without_a_part(
    edits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ghost, dog = (edits / f"{name}.safetensors" for name in ("ghost", "dog"))
    both, rest = tmp_path / "both.safetensors", tmp_path / "rest.safetensors"
    summary, parts = told(["compose", ghost, dog, "--output", both], capsys)
    assert summary.startswith(f"{both}: ghost (uce) + dog (uce): 8 parameters")
    assert parts == f"parts: {Edit.load(ghost).id}, {Edit.load(dog).id}"
    assert Edit.load(both).id == (Edit.load(ghost) + Edit.load(dog)).id
    told(["compose", both, "--without", ghost, "--output", rest], capsys)
    assert Edit.load(rest).id == Edit.load(dog).id
    told(["compose", ghost, dog, "--without", dog, "--output", rest], capsys)
    assert Edit.load(rest).id == Edit.load(ghost).id
    told(["compose", both, "--only", "dog", "--output", rest], capsys)
    assert Edit.load(rest).id == Edit.load(dog).id
    told(["compose", both, "--without-concept", "dog", "--output", rest], capsys)
    assert Edit.load(rest).id == Edit.load(ghost).id


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("export e --to lora --output x.bin", "give a name that ends .safetensors"),
        ("export e --to weights --output x.safetensors --rank 3", "only a LoRA has a rank"),
        ("export none --to lora --output x.safetensors", "none: no such edit"),
        ("export e --to onnx --output x.safetensors", "onnx"),
        ("import none --output x.safetensors", "none: no such file or folder"),
        ("import none --output x.pt", "give a name that ends .safetensors"),
        ("import none --output x.safetensors --kind style", "--kind: name the --concept"),
        ("compose --output x.safetensors", "say which edits to add up"),
        ("compose none --output x.safetensors", "none: no such edit"),
        ("compose none --output x", "give a name that ends .safetensors"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    arguments: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (line,) = told([*arguments.split()], capsys, 2)
    assert line.startswith("error: ")
    assert message in line
    assert not any(tmp_path.iterdir())
