"""SPM's files: in and out without a change, by the model's own names, refused where they lie."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from expunge import Concept, Edit, ExpungeError, Model, erase, load
from expunge.cli import main
from expunge.edits.membranes import Membranes
from expunge.formats import spm
from expunge.testing import membrane

SANTA = Concept(target="santa claus", synonyms=["santa"], kind="character")
GHOST = Concept(target="ghost")
PROMPTS = ["a picture of santa claus", "a ghost", "a dog"]


@torch.no_grad()
def predicted(model: Model) -> torch.Tensor:
    latents = torch.randn(3, *model.latent_shape, generator=torch.Generator().manual_seed(2))
    return model.predict(latents, 400, model.condition(PROMPTS))


def written(edit: Edit, model: Model, folder: Path) -> Path:
    """The one file of an edit of one membrane."""
    [file] = spm.save(edit, model, folder / "out")
    return file


@pytest.mark.parametrize("rank", [1, 2])
def test_what_is_written_and_read_draws_the_same(pico: Model, tmp_path: Path, rank: int) -> None:
    both = membrane(pico, SANTA, 1, rank=rank, strength=2.0, rule="released")
    both = both + membrane(pico, GHOST, 2, rank=rank, strength=2.0, rule="released")
    files = spm.save(both, pico, tmp_path / "out")
    assert sorted((tmp_path / "out").iterdir()) == sorted(files)
    back = spm.load(tmp_path / "out", pico, "character", rule="released", strength=2.0)
    with both.applied(pico):
        expected = predicted(pico)
    with back.applied(pico):
        assert torch.equal(predicted(pico), expected)
    assert not torch.equal(predicted(pico), expected)
    listed = {tuple(c.target for c in part.provenance.concepts) for part in back.components}
    assert listed == {("santa claus", "santa"), ("ghost",)}
    single = spm.load(files[0], pico, rule="released", strength=2.0)
    assert len(single.components) == 1


def test_a_file_is_a_lora_of_kohyas(pico: Model, tmp_path: Path) -> None:
    """Names, shapes, header; and that diffusers draws with it what an open membrane draws."""
    edit = membrane(pico, SANTA, 1, metric="allone")
    file = written(edit, pico, tmp_path)
    with safe_open(file, framework="pt") as opened:
        header = opened.metadata()
    assert (header["prompts"], header["rank"], header["alpha"]) == ("santa claus,santa", "1", "1.0")
    tensors = load_file(file)
    assert len(tensors) == 3 * len(pico.select("transformers"))
    start = "lora_unet_down_blocks_0_attentions_0_"
    assert tensors[f"{start}proj_in.lora_down.weight"].shape == (1, 16, 1, 1)
    assert tensors[f"{start}proj_out.lora_up.weight"].shape == (16, 1, 1, 1)
    assert tensors[f"{start}transformer_blocks_0_attn1_to_out_0.lora_up.weight"].shape == (16, 1)
    with edit.applied(pico):
        expected = predicted(pico)
    pico.pipe.load_lora_weights(str(file))
    torch.testing.assert_close(predicted(pico), expected, rtol=1e-4, atol=1e-5)


def test_alpha_counts(pico: Model, tmp_path: Path) -> None:
    file = written(membrane(pico, SANTA, 1, rank=2), pico, tmp_path)
    tensors = load_file(file)
    half = {name: t / 2 if name.endswith(".alpha") else t for name, t in tensors.items()}
    save_file(half, tmp_path / "half.safetensors", {"prompts": "ghost"})
    whole, less = (spm.read(path, pico) for path in (file, tmp_path / "half.safetensors"))
    for name, up in whole.up.items():
        assert torch.equal(less.up[name], up / 2)
        assert torch.equal(less.down[name], whole.down[name])


def test_what_isnt_a_whole_membrane_is_refused(pico: Model, tmp_path: Path) -> None:
    tensors = load_file(written(membrane(pico, SANTA), pico, tmp_path))
    first = next(name for name in tensors if name.endswith("lora_up.weight"))
    layer = first.partition(".")[0]
    cases = {
        "lacks .*alpha": {n: t for n, t in tensors.items() if n != f"{layer}.alpha"},
        "aren't finite": {**tensors, first: tensors[first] * torch.nan},
        "made from another model": {**tensors, first: torch.zeros(3, 1)},
        "has no layer for 'lora_unet_elsewhere'": {**tensors, "lora_unet_elsewhere.alpha": first},
    }
    for number, (message, content) in enumerate(cases.items()):
        path = tmp_path / f"{number}.safetensors"
        content = {n: torch.ones(()) if isinstance(t, str) else t for n, t in content.items()}
        save_file(content, path, {"prompts": "santa claus"})
        with pytest.raises(ExpungeError, match=message):
            spm.load(path, pico)
    save_file(tensors, tmp_path / "none.safetensors", {"prompts": " , "})
    with pytest.raises(ExpungeError, match="names no phrase"):
        spm.load(tmp_path / "none.safetensors", pico)
    save_file(tensors, tmp_path / "lora.safetensors")
    with pytest.raises(ExpungeError, match="no SPM file"):
        spm.load(tmp_path / "lora.safetensors", pico)
    assert not spm.recognised(tmp_path / "nowhere")


def test_only_membranes_can_be_written(pico: Model, tmp_path: Path) -> None:
    with pytest.raises(ExpungeError, match=r"\(uce\) isn't a membrane"):
        spm.save(membrane(pico, GHOST) + erase(pico, "dog"), pico, tmp_path / "out")
    with pytest.raises(ExpungeError, match="separate phrases by commas"):
        spm.save(membrane(pico, Concept(target="santa, claus")), pico, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_layers_of_one_name_are_refused(pico: Model, monkeypatch) -> None:
    names = ("a.attentions.to_q.weight", "a_attentions.to_q.weight")
    monkeypatch.setattr(pico, "select", lambda role: names)
    with pytest.raises(ExpungeError, match="two layers that a file calls 'lora_unet_a_att"):
        spm._layers(pico)


def test_on_the_command_line(pico_folder: Path, tmp_path: Path, capsys) -> None:
    model = load(pico_folder, device="cpu")
    edit, back = tmp_path / "edit.safetensors", tmp_path / "back.safetensors"
    membrane(model, SANTA, rule="released").save(edit)
    place = ["--model", str(pico_folder)]
    files = tmp_path / "files"
    assert main(["export", str(edit), *place, "--to", "spm", "--output", str(files)]) == 0
    assert "1 membrane" in capsys.readouterr().err
    read = ["import", str(files), *place, "--output", str(back)]
    assert main([*read, "--kind", "character", "--rule", "released", "--strength", "2"]) == 0
    assert "santa claus, santa (imported)" in " ".join(capsys.readouterr().err.split())
    [part] = Edit.load(back).components
    assert isinstance(part.payload, Membranes)
    assert (part.payload.rule, part.payload.strengths.tolist()) == ("released", [2.0])
    assert {concept.kind for concept in part.provenance.concepts} == {"character"}
    assert main([*read, "--concept", "dog"]) == 2
    assert "name their own" in capsys.readouterr().err
    weights = tmp_path / "weights.safetensors"
    plain = tmp_path / "plain.safetensors"
    erase(model, "dog").save(plain)
    main(["export", str(plain), *place, "--to", "weights", "--output", str(weights)])
    assert main(["import", str(weights), *place, "--output", str(back), "--metric", "clipcos"]) == 2
    assert "--metric: only with a file of SPM's" in capsys.readouterr().err
