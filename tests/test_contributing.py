"""The four recipes of CONTRIBUTING.md, run as they stand there."""

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from diffusers import LDMTextToImagePipeline
from PIL import Image

from expunge import Concept, ExpungeError, Model, erase, load, testing
from expunge.detectors.base import DETECTORS, Classifier, detector
from expunge.generation import ImageRequest, Sampler, sample
from expunge.methods import METHODS
from expunge.models import FAMILIES

PAGE = Path(__file__).parent.parent / "CONTRIBUTING.md"
SANTA = Concept(target="santa claus", kind="character", anchor="man")


def module(file: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The code block that begins with ``# file``, as a module that can be imported by name."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.S | re.M)
    [block] = [block for block in blocks if block.startswith(f"# {file}\n")]
    path = folder / Path(file).name
    path.write_text(block)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, path.stem, raising=False)
    return importlib.import_module(path.stem)


def test_add_a_method(pico: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module("methods/nudge.py", tmp_path, monkeypatch)
    monkeypatch.setitem(METHODS.places, "nudge", "nudge:Nudge")
    edit = erase(pico, SANTA, "nudge", share=0.25)
    assert edit.provenance[0].settings["share"] == 0.25
    before = pico.denoiser.get_parameter(edit.names[0]).clone()
    with edit.applied(pico):
        assert not torch.equal(pico.denoiser.get_parameter(edit.names[0]), before)
    assert torch.equal(pico.denoiser.get_parameter(edit.names[0]), before)
    with pytest.raises(ExpungeError, match="share"):
        erase(pico, SANTA, "nudge", share=2)


def test_add_a_model_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module("models/ldm.py", tmp_path, monkeypatch)
    parts = testing.pipeline(tmp_path, length=77)
    pipe = LDMTextToImagePipeline(
        parts.vae, parts.text_encoder, parts.tokenizer, parts.unet, parts.scheduler
    )
    pipe.set_progress_bar_config(disable=True)
    with pytest.raises(ExpungeError, match="known are"):
        load(pipe)
    monkeypatch.setitem(FAMILIES.places, "LDMTextToImagePipeline", "ldm:LatentDiffusion")
    model = load(pipe)
    [(_, ours)] = sample(
        model,
        [ImageRequest(case_number="1", prompt="a dog", seed=3)],
        Sampler(scheduler="native", steps=4, guidance_scale=3.0),
    )
    [theirs] = pipe(
        "a dog",
        num_inference_steps=4,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(3),
        height=64,  # the pipeline takes every autoencoder for one that divides by 8
        width=64,
        latents=torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(3)),
        output_type="pt",
    ).images
    wanted = (theirs.permute(1, 2, 0) * 255).round().to(torch.uint8)
    assert int((ours.int() - wanted.int()).abs().max()) <= 1
    with pytest.raises(ExpungeError, match="uce is for sd models so far"):
        erase(model, SANTA, "uce")


def test_add_a_detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module("detectors/brightness.py", tmp_path, monkeypatch)
    monkeypatch.setitem(DETECTORS.places, "brightness", "brightness:build")
    found = detector("brightness")
    assert isinstance(found, Classifier)
    pictures = [Image.new("RGB", (4, 4), colour) for colour in ("black", "white")]
    assert found.probabilities(pictures).tolist() == [[1, 0], [0, 1]]


def test_add_an_attack(pico: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attack = module("attacks/found_token.py", tmp_path, monkeypatch)
    edit = erase(pico, SANTA, "uce")
    row, losses = attack.found_token(
        pico, edit, "santa claus", "a picture of art", steps=30, seed=0, lr=0.05
    )
    assert row.shape == (1, 32)
    assert min(losses) < 0.9 * losses[0]
    again, _ = attack.found_token(
        pico, edit, "santa claus", "a picture of art", steps=30, seed=0, lr=0.05
    )
    assert torch.equal(row, again)
    with pytest.raises(ExpungeError, match="refused"):
        attack.found_token(pico, edit, "someone at the age of fifteen", "nudity", steps=1, seed=0)
