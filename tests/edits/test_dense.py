"""An edit of every weight takes little more memory than the model, and is whole or not at all."""

import copy
import json
import os
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest
import torch
from torch import Tensor

from expunge import Concept, Edit, ExpungeError, Model, tensors
from expunge.edits.applied import Applied
from expunge.models.aside import Aside
from expunge.tensors import Slot
from expunge.testing import dense

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
GHOST, SANTA = Concept(target="ghost"), Concept(target="santa claus")


def weights(model: Model) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in model.denoiser.named_parameters()}


def identical(model: Model, wanted: dict[str, Tensor]) -> bool:
    return all(torch.equal(w, wanted[name]) for name, w in model.denoiser.named_parameters())


@pytest.fixture
def stored(pico: Model, tmp_path: Path) -> Path:
    path = tmp_path / "edit.safetensors"
    dense(pico, GHOST).save(path)
    return path


def touch(path: Path) -> None:
    """Write into a file without replacing it."""
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\0")
    os.utime(path, ns=(0, 0))


@pytest.fixture
def after_three(pico: Model, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Lets a file be changed once three weights have been written."""
    write, written = pico.weights.write, list[str]()

    def install(path: Path) -> None:
        def watched(values: dict[str, Tensor | None]) -> None:
            write(values)
            written.extend(values)
            if len(written) == 3:
                touch(path)

        monkeypatch.setattr(pico.weights, "write", watched)

    return install


def test_each_tensor_is_read_when_it_is_needed_and_not_kept(
    pico: Model, stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, alive, most = tensors.read_slot, dict[int, Slot](), [0]

    def counted(file: BinaryIO, slot: Slot) -> Tensor:
        tensor = read(file, slot)
        alive[id(tensor)] = slot
        weakref.finalize(tensor, alive.pop, id(tensor))
        most[0] = max(most[0], len(alive))
        return tensor

    monkeypatch.setattr(tensors, "read_slot", counted)
    edit = Edit.load(stored)
    edit.apply(pico)
    edit.revert(pico)
    assert 1 <= most[0] <= 2 < len(edit.names)


def test_an_edit_of_every_weight_applies_and_reverts_bit_for_bit(pico: Model, stored: Path) -> None:
    made, before = dense(pico, GHOST), weights(pico)
    wanted = {
        name: (weight.double() + made.components[0].payload.tensors()[name].double()).float()
        for name, weight in before.items()
    }
    for edit in (made, Edit.load(stored)):
        with edit.applied(pico):
            assert identical(pico, wanted)
            edit.check_base(pico)
        assert identical(pico, before)


def test_an_edit_outlives_its_file(pico: Model, stored: Path) -> None:
    edit = Edit.load(stored)
    with edit.applied(pico):
        wanted = weights(pico)
    edit.save(stored)
    with edit.applied(pico):
        assert identical(pico, wanted)
    stored.unlink()
    with edit.applied(pico):
        assert identical(pico, wanted)


def test_a_copy_of_an_edited_model_can_be_reverted(pico: Model, stored: Path) -> None:
    edit, before = Edit.load(stored), weights(pico)
    edit.apply(pico)
    wanted, twin = weights(pico), copy.deepcopy(pico)
    edit.revert(pico)
    assert identical(twin, wanted)
    copy.deepcopy(edit).revert(twin)
    assert identical(twin, before)


def test_a_file_that_changes_midway_leaves_the_model_as_it_was(
    pico: Model, stored: Path, after_three: Callable[[Path], None]
) -> None:
    edit, other, before = Edit.load(stored), dense(pico, SANTA, seed=1), weights(pico)
    other.apply(pico)
    others = weights(pico)
    after_three(stored)
    with pytest.raises(ExpungeError, match="was changed since it was loaded"):
        edit.apply(pico)
    assert identical(pico, others)
    assert Applied.to(pico).components == other.components
    other.revert(pico)
    assert identical(pico, before)


def test_where_what_was_applied_cannot_be_read_again_the_base_is_back(
    pico: Model, stored: Path, after_three: Callable[[Path], None]
) -> None:
    before, first = weights(pico), Edit.load(stored)
    first.apply(pico)
    after_three(stored)
    with pytest.raises(ExpungeError, match="was changed since it was loaded"):
        dense(pico, SANTA, seed=1).apply(pico)
    assert identical(pico, before)
    assert Applied.to(pico).components == ()


def test_what_half_precision_cannot_hold_never_reaches_the_model(pico: Model) -> None:
    pico.cast(torch.float16)
    before = weights(pico)
    edit = dense(pico, GHOST, scale=1e5)
    with pytest.raises(ExpungeError, match="aren't finite"):
        edit.apply(pico)
    assert identical(pico, before)


def test_few_weights_are_put_aside_in_memory_and_many_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, temporary = list[Path](), tempfile.TemporaryFile

    def counted(dir: Path) -> object:
        made.append(dir)
        return temporary(dir=dir)

    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path))
    monkeypatch.setattr(tempfile, "TemporaryFile", counted)
    network = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(9)))
    given = dict(network.named_parameters())
    aside = Aside(network)
    aside.expect(["0.weight"])
    aside["0.weight"] = given["0.weight"]
    assert not made
    aside.expect(list(given))
    aside.update(given)
    assert made == [tmp_path]
    for kept in (aside, copy.deepcopy(aside)):
        assert kept.keys() == given.keys()
        assert all(torch.equal(kept[name], value) for name, value in given.items())
    assert not [*tmp_path.iterdir()]


def test_where_no_file_can_be_written_weights_stay_in_memory(
    pico: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPUNGE_CACHE", os.devnull + "/cache")
    before, edit = weights(pico), dense(pico, GHOST)
    with edit.applied(pico):
        assert not identical(pico, before)
    assert identical(pico, before)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="measures resident memory")
def test_an_edit_of_every_weight_takes_a_quarter_of_the_model_more_at_most(
    tmp_path: Path,
) -> None:
    for step in ("make", "use"):
        command = [sys.executable, str(BENCHMARKS / "dense.py"), step, str(tmp_path)]
        ended = subprocess.run(
            [*command, "--model", "wide"], capture_output=True, text=True, check=True
        )
    found = json.loads(ended.stdout)
    imports = 2**24
    assert found["added"] <= 0.25 * found["network"] + imports
