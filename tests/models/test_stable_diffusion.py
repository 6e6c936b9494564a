from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DConditionModel

from expunge import ExpungeError, Model, load
from expunge import testing as build
from expunge.methods.esd.released import parameters
from expunge.models.loading import _own_device
from expunge.models.stable_diffusion import StableDiffusion


@pytest.fixture(scope="module")
def sd14() -> StableDiffusion:
    with torch.device("meta"):
        return StableDiffusion(SimpleNamespace(unet=UNet2DConditionModel(**build.SD14)))


def millions(model: Model, names: tuple[str, ...]) -> float:
    return round(sum(model.denoiser.get_parameter(name).numel() for name in names) / 1e6, 2)


@pytest.mark.parametrize(
    ("role", "tensors", "size"),
    [
        ("cross_attention.kv", 32, 19.17),
        ("cross_attention", 80, 43.96),
        ("self_attention", 80, 49.57),
        ("not_cross_attention", 388, 815.36),
        ("all", 686, 859.52),
        ("*.attn2.to_k.*", 16, 9.58),
    ],
)
def test_roles_select_what_they_say_on_sd14(
    sd14: StableDiffusion, role: str, tensors: int, size: float
) -> None:
    names = sd14.select(role)
    assert (len(names), millions(sd14, names)) == (tensors, size)


@pytest.mark.parametrize(
    ("variant", "method", "tensors", "size"),
    [
        ("compvis", "xattn", 80, 43.96),
        ("compvis", "noxattn", 598, 813.5),
        ("compvis", "full", 686, 859.52),
        ("diffusers-sd", "esd-x", 80, 43.96),
        ("diffusers-sd", "esd-x-strict", 32, 19.17),
        ("diffusers-sd", "esd-u", 388, 815.36),
    ],
)
def test_released_programs_train_what_they_trained(
    sd14: StableDiffusion, variant: str, method: str, tensors: int, size: float
) -> None:
    names = parameters(sd14, variant, method)
    assert len(names) == tensors
    assert millions(sd14, names) == pytest.approx(size, abs=0.05)


def test_choosing_nothing_lists_near_names(pico: Model) -> None:
    with pytest.raises(ExpungeError, match=r"did you mean cross_attention"):
        pico.select("cross_atention")
    with pytest.raises(ExpungeError, match="selects no parameter"):
        pico.select("*.attn3.*")


def test_a_prompt_has_the_same_embedding_in_any_batch(pico: Model) -> None:
    alone = pico.encode(["a dog"])
    together = pico.encode(["a cat", "a dog", "", "a dog"])
    assert together.shape == (4, 16, 32)
    assert torch.allclose(together[1], alone[0], atol=1e-5)
    assert torch.equal(together[1], together[3])


def test_the_last_token_is_the_row_of_the_last_word(pico: Model) -> None:
    assert [pico.last_token(p) for p in ("", " ", "dog", "a picture of santa claus")] == [
        0,
        0,
        1,
        5,
    ]


def test_a_live_pipeline_is_taken_as_it_is(pico: Model) -> None:
    assert load(pico.pipe).pipe is pico.pipe


@pytest.mark.parametrize("source", ["emojj", "./nowhere", "/no/where"])
def test_a_missing_model_is_one_line(source: str) -> None:
    with pytest.raises(ExpungeError, match="no model at"):
        load(source)


def test_a_broken_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ExpungeError, match="can't load the model") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_half_precision_has_the_same_fingerprint(pico_folder: Path, pico: Model) -> None:
    half = load(pico_folder, dtype=torch.float16, device="cpu")
    assert half.fingerprint() == pico.fingerprint()
    with torch.no_grad():
        pico.denoiser.conv_in.bias[0] += 0.01
    assert half.fingerprint() != pico.fingerprint()


def test_each_launched_process_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert _own_device() == "cuda:0"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert _own_device() == "cuda:1"
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ExpungeError, match="process 3 has no GPU, there are 2"):
        _own_device()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert _own_device() == "cpu"
