from pathlib import Path

import pytest
import torch

from expunge import ExpungeError, Model, load
from expunge.models.loading import _own_device


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
