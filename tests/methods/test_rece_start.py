"""RECE continues what another edit has begun."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from expunge import Concept, Edit, ExpungeError, Model, Policy, erase
from expunge.cli import main
from expunge.edits import Dense
from expunge.edits.applied import edited_weights
from expunge.methods.rece.method import RECE
from expunge.testing import membrane
from toy_rece import POLICY, Literal, close

OTHERWISE = Policy(
    erase=(Concept(target="ghost", anchor="dog"), Concept(target="santa claus", anchor="art")),
)
"""The same concepts as ``POLICY``, towards other anchors."""


def whole(model: Model, edit: Edit) -> Tensor:
    """What an edit does to all projections, ``[all outputs, width]``."""
    names = model.select("cross_attention.kv")
    edited = edited_weights(model, edit.components, names)
    return torch.cat([edited[name] - model.base_weight(name).double() for name in names])


@pytest.mark.parametrize("technique", ["replace", "tensor"])
@pytest.mark.parametrize("first", ["uce", "tensor", "rece", "twice", "esd"])
def test_the_epochs_start_from_any_edit(pico: Model, technique: str, first: str) -> None:
    start = {
        "uce": lambda: erase(pico, OTHERWISE, "uce"),
        "tensor": lambda: erase(pico, OTHERWISE, "uce", technique="tensor"),
        "rece": lambda: erase(pico, OTHERWISE, "rece", epochs=1),
        "twice": lambda: erase(pico, "ghost", "uce") + erase(pico, "cat", "uce"),
        "esd": lambda: erase(pico, "ghost", "esd", lr=1e-2, **TINY),
    }[first]()
    values = {"epochs": 2, "regular_scale": 0.1, "technique": technique, "fidelity": "original"}
    edit = erase(pico, POLICY, "rece", start=start, **values)
    names = pico.select("cross_attention.kv")
    theirs = edited_weights(pico, start.components, names)
    stage = Dense({name: theirs[name] - pico.base_weight(name).double() for name in names})
    literal = Literal(pico, RECE(**values), POLICY, stage)
    for _ in range(2):
        literal.epoch()
    wanted = torch.cat([literal.now[name] - literal.base[name] for name in names])
    assert close(whole(pico, edit), wanted)
    assert edit.ids[: len(start.ids)] == start.ids
    assert edit.provenance[-1].settings["start"] == start.id
    assert [part.method for part in (edit - start).provenance] == ["rece"]


TINY = {"train_method": "full", "iterations": 1, "trajectories": 1, "num_inference_steps": 2}


def test_an_edit_that_epochs_continue_is_whole_and_reverts_to_the_base(
    pico: Model, tmp_path: Path
) -> None:
    before = {name: weight.clone() for name, weight in pico.denoiser.named_parameters()}
    start = erase(pico, "ghost", "esd", lr=1e-2, **TINY)
    edit = erase(pico, POLICY, "rece", start=start, regular_scale=0.1)
    edit.save(tmp_path / "edit.safetensors")
    again = Edit.load(tmp_path / "edit.safetensors")
    assert again.id == edit.id
    with again.applied(pico):
        changed = {n for n, w in pico.denoiser.named_parameters() if not torch.equal(w, before[n])}
    assert changed == set(start.changed)  # what isn't a key or value keeps what start did
    assert all(torch.equal(weight, before[n]) for n, weight in pico.denoiser.named_parameters())


def test_a_published_checkpoint_is_a_start(pico: Model, tmp_path: Path) -> None:
    start = erase(pico, OTHERWISE, "uce")
    with start.applied(pico):
        torch.save(pico.denoiser.state_dict(), tmp_path / "unet.pt")
        pico.denoiser.save_pretrained(tmp_path / "unet")
    from_edit = erase(pico, POLICY, "rece", start=start, regular_scale=0.1)
    for path in (tmp_path / "unet.pt", tmp_path / "unet"):
        edit = erase(pico, POLICY, "rece", start=str(path), regular_scale=0.1)
        assert [part.method for part in edit.provenance] == ["imported", "rece"]
        assert edit.provenance[1].settings["start"] == edit.ids[0]
        off = whole(pico, edit) - whole(pico, from_edit)
        assert off.norm() < 1e-2 * whole(pico, from_edit).norm()


def test_the_command_line_takes_a_start_both_ways(pico_folder: Path, tmp_path: Path) -> None:
    model, first = str(pico_folder), tmp_path / "first.safetensors"
    erase_it = ["erase", "--model", model, "--concept", "ghost", "--anchor"]
    assert main([*erase_it, "dog", "--output", str(first)]) == 0
    made = []
    for option in (["--start", str(first)], ["--set", f"start={first}"]):
        output = tmp_path / "both.safetensors"
        again = [*erase_it, "man", "--method", "rece", *option, "--output", str(output)]
        assert main(again) == 0
        made.append(Edit.load(output))
    assert made[0].id == made[1].id
    assert [part.concepts[0].anchor for part in made[0].provenance] == ["dog", "man"]


def test_a_method_without_a_first_stage_has_no_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "edit.safetensors"
    start = ["--start", str(output), "--output", str(output)]
    assert main(["erase", "--concept", "ghost", *start]) == 2
    assert "--start: uce starts from the base itself" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"start": "nowhere.pt"}, "nowhere.pt: no such file or folder"),
        ({"epochs": 0}, "epochs: 0 would leave start as it is"),
        ({"uce_lamb": 3.0}, "uce_lamb: is of the stage that start replaces"),
        ({"templates": True, "fidelity": "original"}, "templates: is of the stage"),
    ],
)
def test_a_start_that_cant_be_is_refused(
    pico: Model, values: dict[str, object], message: str
) -> None:
    start = erase(pico, OTHERWISE, "uce")
    with pytest.raises(ExpungeError, match=message):
        erase(pico, POLICY, "rece", **{"start": start, **values})


def test_a_start_of_another_kind_or_model_is_refused(pico: Model) -> None:
    gates = membrane(pico, Concept(target="ghost"))
    with pytest.raises(ExpungeError, match="gates or guards, and only changed weights"):
        erase(pico, POLICY, "rece", start=gates)
    start = erase(pico, OTHERWISE, "uce")
    with torch.no_grad():
        pico.denoiser.get_parameter(pico.select("cross_attention.kv")[0]).mul_(1.5)
    with pytest.raises(ExpungeError, match="differ from it"):
        erase(pico, POLICY, "rece", start=start)
