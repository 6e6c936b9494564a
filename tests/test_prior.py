"""A prior is the sum of e e^T over prompts, however it was interrupted, saved or imported."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from expunge import Edit, ExpungeError, Model, load
from expunge.cli import main
from expunge.models import Condition
from expunge.prior import Prior, sums
from expunge.prior.legacy import imported

CAPTIONS = tuple(
    f"a {first} of a {second}"
    for first in ("photo", "picture", "style")
    for second in ("dog", "cat", "man", "ghost")
)


@pytest.fixture
def other(pico: Model) -> Model:
    """The same model with another text encoder."""
    with torch.no_grad():
        next(pico.pipe.text_encoder.parameters()).mul_(1.5)
    return pico


@pytest.fixture
def made(pico_folder: Path) -> Prior:
    return Prior.of(load(pico_folder, device="cpu"), CAPTIONS)


def old_cache(model: Model, total: torch.Tensor, path: Path) -> dict[str, torch.Tensor]:
    """The sum in the form that other programs pass around."""
    cache = {}
    for i, name in enumerate(model.values_then_keys()):
        cache[f"{i}_for_mat1"] = (model.base_weight(name).double() @ total).float()
        cache[f"{i}_for_mat2"] = total.float()
    torch.save(cache, path)
    return cache


def test_it_is_the_sum_over_all_rows(pico: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sums, "BATCH", 5)
    captions = (*CAPTIONS, CAPTIONS[0])
    made = Prior.of(pico, captions)
    slow = torch.zeros(32, 32, dtype=torch.float64)
    for caption in captions:
        for row in pico.encode([caption])[0].double():
            slow += torch.outer(row, row)
    assert torch.allclose(made.gram, slow, rtol=1e-5, atol=1e-4)
    assert torch.equal(made.mean, made.gram / 13)
    assert (made.metadata.count, made.metadata.positions) == (13, 16)


def test_stopped_and_resumed_gives_the_same_sum(
    pico: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sums, "BATCH", 2)
    monkeypatch.setattr(sums, "SAVE_EVERY", 0.0)
    whole, state = Prior.of(pico, CAPTIONS), tmp_path / "state.safetensors"
    real, calls = pico.encode, []

    def failing(prompts: list[str]) -> torch.Tensor:
        calls.append(prompts)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(prompts)

    monkeypatch.setattr(pico, "encode", failing)
    with pytest.raises(KeyboardInterrupt):
        Prior.of(pico, CAPTIONS, checkpoint=state)
    with pytest.raises(ExpungeError, match="unfinished prior, 4 of 12 prompts"):
        Prior.load(state)
    resumed = Prior.of(pico, CAPTIONS, checkpoint=state)
    assert [tuple(block) for block in calls[5:]] == [CAPTIONS[at : at + 2] for at in (4, 6, 8, 10)]
    assert torch.equal(resumed.gram, whole.gram)
    assert resumed.metadata == whole.metadata


def test_a_state_of_other_prompts_is_refused(
    pico: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sums, "SAVE_EVERY", 0.0)
    Prior.of(pico, CAPTIONS, checkpoint=tmp_path / "state.safetensors")
    with pytest.raises(ExpungeError, match="a run with other prompts"):
        Prior.of(pico, CAPTIONS[1:], checkpoint=tmp_path / "state.safetensors")
    made = Prior.of(pico, CAPTIONS)
    made.save(tmp_path / "whole.safetensors")
    with pytest.raises(ExpungeError, match="a run with other prompts"):
        Prior.of(pico, CAPTIONS, checkpoint=tmp_path / "whole.safetensors")


def test_no_prompt_and_broken_embeddings_are_errors(pico: Model) -> None:
    with pytest.raises(ExpungeError, match="no prompt given"):
        Prior.of(pico, [])
    pico.remember({"dog": Condition(torch.full((1, 16, 32), torch.nan))})
    with pytest.raises(ExpungeError, match="aren't all finite"):
        Prior.of(pico, ["dog"])


def test_a_loaded_prior_is_the_saved_one(made: Prior, tmp_path: Path) -> None:
    made.save(tmp_path / "prior.safetensors")
    loaded = Prior.load(tmp_path / "prior.safetensors")
    assert torch.equal(loaded.gram, made.gram)
    assert loaded.metadata == made.metadata
    with pytest.raises(ExpungeError, match="no expunge edit"):
        Edit.load(tmp_path / "prior.safetensors")


def test_other_files_are_refused(made: Prior, tmp_path: Path) -> None:
    path = tmp_path / "prior.safetensors"
    with pytest.raises(ExpungeError, match="no such prior"):
        Prior.load(path)
    save_file({"gram": made.gram}, path)
    with pytest.raises(ExpungeError, match="no record inside"):
        Prior.load(path)
    save_file({"gram": made.gram}, path, metadata={sums.HEADER: '{"metadata": {"count": 0}}'})
    with pytest.raises(ExpungeError, match="wrong record: text_encoder: Field required"):
        Prior.load(path)
    Prior(made.gram[:3], made.metadata).save(path)
    with pytest.raises(ExpungeError, match="isn't a square matrix"):
        Prior.load(path)
    Prior(made.gram / 0, made.metadata).save(path)
    with pytest.raises(ExpungeError, match="aren't all finite"):
        Prior.load(path)
    path.write_bytes(b"not this")
    with pytest.raises(ExpungeError, match="not a safetensors file"):
        Prior.load(path)


def test_another_text_encoder_is_refused(made: Prior, pico_folder: Path, other: Model) -> None:
    half = load(pico_folder, device="cpu", dtype=torch.float16)
    made.check(half)
    with torch.no_grad():
        half.denoiser.conv_in.weight.zero_()
    made.check(half)
    with pytest.raises(ExpungeError, match="another text encoder"):
        made.check(other)


def test_an_old_cache_is_imported(pico: Model, made: Prior, tmp_path: Path) -> None:
    old_cache(pico, made.gram, tmp_path / "cache.pt")
    found = imported(tmp_path / "cache.pt", pico)
    assert torch.allclose(found.gram, made.gram, rtol=1e-6)
    assert found.metadata.prompts is None
    assert found.metadata.count == pytest.approx(len(CAPTIONS), abs=1)
    found.check(pico)


def test_values_come_before_keys_and_the_middle_last(pico: Model) -> None:
    order = pico.values_then_keys()
    half = len(order) // 2
    assert set(order) == set(pico.select("cross_attention.kv"))
    assert all(".to_v." in name for name in order[:half])
    assert [name.replace("to_k", "to_v") for name in order[half:]] == list(order[:half])
    blocks = [name.partition("_")[0] for name in order[:half]]
    assert blocks == sorted(blocks, key=["down", "up", "mid"].index)
    assert blocks[-1] == "mid"


class Payload:
    """What a file must never bring to life."""


def test_what_is_no_old_cache_is_refused(pico: Model, made: Prior, tmp_path: Path) -> None:
    path = tmp_path / "cache.pt"
    with pytest.raises(ExpungeError, match="no such cache"):
        imported(path, pico)
    torch.save({"0_for_mat1": Payload()}, path)
    with pytest.raises(ExpungeError, match="can't be read as a plain torch file"):
        imported(path, pico)
    path.write_text("nothing")
    with pytest.raises(ExpungeError, match="can't be read as a plain torch file"):
        imported(path, pico)
    torch.save([1, 2], path)
    with pytest.raises(ExpungeError, match="not a torch file of named tensors"):
        imported(path, pico)
    cache = old_cache(pico, made.gram, path)

    def refused(message: str, **changed: torch.Tensor) -> None:
        torch.save({**cache, **changed}, path)
        with pytest.raises(ExpungeError, match=message):
            imported(path, pico)

    refused("17 tensors; a cache of this model has the 16 tensors", more=made.gram)
    refused("0_for_mat2 and 3_for_mat2 differ", **{"3_for_mat2": 1.01 * cache["3_for_mat2"]})
    refused("2_for_mat1 isn't the .*to_v.weight of this", **{"2_for_mat1": cache["1_for_mat1"]})
    narrow = {name: tensor[:, :8] for name, tensor in cache.items()}
    refused(r"shape \(32, 8\)", **narrow)


def test_the_command_sums_up_and_imports(
    pico_folder: Path, pico: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, out = tmp_path / "captions.txt", tmp_path / "prior.safetensors"
    text.write_text("\n".join(CAPTIONS))
    arguments = ["prior", "--model", str(pico_folder), "--output", str(out)]
    assert main([*arguments, "--prompts", str(text)]) == 0
    assert "a prior of 12 captions" in " ".join(capsys.readouterr().err.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["captions.txt", out.name]
    assert torch.equal(Prior.load(out).gram, Prior.of(pico, CAPTIONS).gram)
    old_cache(pico, Prior.load(out).gram, tmp_path / "cache.pt")
    assert main([*arguments, "--legacy", str(tmp_path / "cache.pt")]) == 0
    assert Prior.load(out).metadata.prompts is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "x.safetensors"], "either with --prompts FILE or with --legacy FILE"),
        (["--output", "x.bin", "--prompts", "a.txt"], "a prior is a .safetensors file"),
        (["--output", "x.safetensors", "--prompts", "none.txt"], "none.txt: can't read it"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prior", *arguments]) == 2
    assert message in capsys.readouterr().err
