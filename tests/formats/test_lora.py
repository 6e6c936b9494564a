import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from changes import edit_of, matrices, predicted, random
from peft import PeftModel
from safetensors import safe_open

from expunge import Concept, Edit, ExpungeError, Model, erase, load
from expunge.edits import Dense, LowRank
from expunge.edits.applied import Applied, edited_weights
from expunge.formats import lora
from expunge.formats.writing import RECORD


def by_uce(model: Model) -> Edit:
    return erase(model, Concept(target="santa claus", anchor="man"), "uce")


def by_sum(model: Model) -> Edit:
    """Two ridge systems, which are solved as one, and whole changes on top."""
    ghost = erase(model, "ghost", "uce")
    names = model.select("cross_attention.kv")[::2]
    dense = Dense({n: random(*model.base_weight(n).shape, scale=0.01) for n in names})
    return by_uce(model) + ghost + edit_of(dense, model)


def everywhere(model: Model) -> Edit:
    """One of each kind of linear layer and convolution, all of full rank."""
    one_of_each = {re.sub(r"\d", "", name): name for name in matrices(model)}.values()
    return edit_of(Dense({n: random(*model.base_weight(n).shape) for n in one_of_each}), model)


def of_several_ranks(model: Model) -> Edit:
    up, down = {}, {}
    for number, (name, weight) in enumerate(matrices(model).items()):
        if weight.ndim == 2:
            rank = 1 + number % 3
            up[name] = random(len(weight), rank, scale=0.2, seed=number)
            down[name] = random(rank, weight.shape[1], scale=0.2, seed=number)
    return edit_of(LowRank(up, down), model)


def put_in(layout: lora.Layout, model: Model, path: Path) -> None:
    """As the other library's own users do it."""
    if layout == "peft":
        PeftModel.from_pretrained(model.pipe.unet, path)
    else:
        model.pipe.load_lora_weights(str(path))


@pytest.mark.parametrize("make", [by_uce, by_sum, everywhere])
@pytest.mark.parametrize("layout", ["lora", "kohya", "peft"])
def test_the_loaded_lora_predicts_what_the_edit_predicts(
    make: Callable[[Model], Edit],
    layout: lora.Layout,
    pico: Model,
    pico_folder: Path,
    tmp_path: Path,
) -> None:
    edit, path = make(pico), tmp_path / "santa.safetensors"
    with edit.applied(pico):
        wanted = predicted(pico)
    assert (predicted(pico) - wanted).abs().max() > 1e-3
    lora.save(edit, pico, path, layout)
    other = load(pico_folder, device="cpu")
    put_in(layout, other, path)
    assert torch.allclose(predicted(other), wanted, atol=1e-5)


def test_a_peft_folder_loads_into_the_unet_by_diffusers_alone(
    pico: Model, pico_folder: Path, tmp_path: Path
) -> None:
    edit = of_several_ranks(pico)
    lora.save(edit, pico, tmp_path / "peft", "peft")
    other = load(pico_folder, device="cpu")
    other.pipe.unet.load_lora_adapter(
        str(tmp_path / "peft"),
        weight_name="adapter_model.safetensors",
        prefix="base_model.model",
    )
    with edit.applied(pico):
        assert torch.allclose(predicted(other), predicted(pico), atol=1e-5)


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 6e-8), (torch.float16, 5e-4)])
def test_the_rank_is_the_smallest_that_is_exact_to_the_precision(
    pico: Model, dtype: torch.dtype, rounding: float
) -> None:
    """Beside the singular values of the change that the model gets."""
    edit = by_sum(pico)
    parts = lora.factors(edit, pico, dtype=dtype)
    for name, weight in edited_weights(pico, edit.components, edit.names).items():
        assert weight is not None
        part, change = parts[name.removesuffix(".weight")], weight - pico.base_weight(name)
        values = torch.linalg.svdvals(change)
        assert values[part.rank :].norm() <= rounding * values.norm()
        assert values[part.rank - 1 :].norm() > rounding / 2 * values.norm()
        written = part.up.double() @ part.down.double()
        assert part.residual == pytest.approx(float((written - change).norm() / change.norm()))
        assert part.residual < 3 * rounding
        assert part.up.dtype == part.down.dtype == dtype


def test_the_rank_of_closed_forms_is_the_number_of_rows(pico: Model) -> None:
    one = erase(pico, "ghost", "uce", variant="2025")
    assert {part.rank for part in lora.factors(one, pico).values()} == {1}
    parts = lora.factors(of_several_ranks(pico), pico).values()
    assert {part.rank for part in parts} == {1, 2, 3}


@pytest.mark.parametrize("layout", ["lora", "kohya", "peft"])
def test_a_capped_rank_is_the_best_of_its_rank_and_the_loss_is_told(
    layout: lora.Layout, pico: Model, tmp_path: Path
) -> None:
    edit = everywhere(pico)
    path = tmp_path / "santa.safetensors"
    parts = lora.save(edit, pico, path, layout, rank=2)
    with safe_open(path / "adapter_model.safetensors" if path.is_dir() else path, "pt") as file:
        record = json.loads(file.metadata()[RECORD])
    assert record["edit"] == edit.id
    assert record["provenance"][0]["base"]["fingerprint"] == edit.provenance[0].base.fingerprint
    assert record["residual"] == {module: part.residual for module, part in parts.items()}
    for name, part in parts.items():
        change = edit.components[0].payload.change(f"{name}.weight", torch.empty(()))
        values = torch.linalg.svdvals(change.flatten(1))
        assert part.rank == 2
        assert part.residual == pytest.approx(float(values[2:].norm() / values.norm()), rel=1e-5)


@pytest.mark.parametrize("layout", ["lora", "kohya", "peft"])
def test_what_is_no_matrix_is_named_and_another_export_proposed(
    layout: lora.Layout, pico: Model, tmp_path: Path
) -> None:
    names = ("mid_block.resnets.0.norm1.weight", "mid_block.attentions.0.proj_in.bias")
    edit = edit_of(Dense({n: torch.ones_like(pico.base_weight(n)) for n in names}), pico)
    with pytest.raises(ExpungeError, match=r"2 biases or norms \(mid_block.resnets.0.norm1.weight"):
        lora.save(edit, pico, tmp_path / "x.safetensors", layout)
    with pytest.raises(ExpungeError, match="--to diffusers or --to checkpoint"):
        lora.factors(edit, pico)
    assert not any(tmp_path.iterdir())


def test_a_matrix_whose_changes_cancel_is_left_out(pico: Model) -> None:
    first, second = pico.select("cross_attention.kv")[:2]
    change = {n: random(*pico.base_weight(n).shape) for n in (first, second)}
    both = edit_of(Dense(change), pico) + edit_of(Dense({first: -change[first]}), pico)
    assert list(lora.factors(both, pico)) == [second.removesuffix(".weight")]
    with pytest.raises(ExpungeError, match="changes no weight"):
        lora.factors(edit_of(Dense({first: torch.zeros_like(change[first])}), pico), pico)


@pytest.mark.parametrize("layout", ["lora", "kohya", "peft"])
def test_another_base_is_refused_and_nothing_is_written(
    layout: lora.Layout, pico: Model, tmp_path: Path
) -> None:
    edit = by_uce(pico)
    with torch.no_grad():
        pico.denoiser.get_parameter(edit.names[0])[0, 0] += 0.1
    with pytest.raises(ExpungeError, match=r"the weights of .* differ from it"):
        lora.save(edit, pico, tmp_path / "x.safetensors", layout)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("layout", ["lora", "kohya", "peft"])
def test_a_write_that_fails_leaves_nothing(
    layout: lora.Layout, pico: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(lora, "save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        lora.save(by_uce(pico), pico, tmp_path / "x.safetensors", layout)
    assert not any(tmp_path.iterdir())
    assert not Applied.to(pico).components


def test_paths_and_ranks_are_checked(pico: Model, tmp_path: Path) -> None:
    edit = by_uce(pico)
    with pytest.raises(ExpungeError, match=r"ends \.safetensors"):
        lora.save(edit, pico, tmp_path / "x.bin", "kohya")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").write_text("mine")
    with pytest.raises(ExpungeError, match="exists already"):
        lora.save(edit, pico, tmp_path / "there", "peft")
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["mine.txt"]
    with pytest.raises(ExpungeError, match="rank of at least 1"):
        lora.factors(edit, pico, rank=0)
