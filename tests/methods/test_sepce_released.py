"""SepCE as its two released programs do it: one concept after the other, and all together."""

from pathlib import Path
from typing import Any

import pytest
import torch

from expunge import Concept, ExpungeError, Model, Policy, erase
from expunge.edits import LowRank
from expunge.methods.sepme.loss import FIRST_TEST
from expunge.methods.sepme.sepce import SepCE
from expunge.methods.sepme.shifts import JointShifts
from expunge.training import saving
from expunge.training.loop import Trainer, train
from stopping import stopped_in
from toy_sepce import moved, taken


def test_the_separable_program_protects_what_is_kept(wide: Model) -> None:
    policy = Policy(erase=(Concept(target="ghost"),), keep=("cat", "dog"))
    values = {"fidelity": "original", "iterations": 3, "num_inference_steps": 2, "lr": 0.1}
    edit = erase(wide, policy, "sepce", **values)
    assert max(moved(wide, edit, ["", "cat", "dog"])) < 1e-6 < moved(wide, edit, ["ghost"])[0]
    with pytest.raises(ExpungeError, match="sepce: the released program erases one concept"):
        erase(wide, ["ghost", "santa"], "sepce", **values)


JOINT: dict[str, Any] = {
    "fidelity": "original",
    "variant": "joint",
    "iterations": 3,
    "num_inference_steps": 2,
    "lr": 0.1,
    "scale_factor": 1.0,
}


def test_the_joint_program_trains_all_concepts_in_each_step(wide: Model) -> None:
    policy, method = Policy.of(["ghost", "dog"]), SepCE(**JOINT)
    student = method.student(wide, policy, 0)
    trainer = Trainer(method, student)
    (batch, *_) = batches = taken(method, student, policy, 3)
    assert len(batch["latents"]) == 2
    assert len(set(batch["timestep"].tolist())) == 1
    assert torch.equal(batch["concept"].rows, wide.encode(["ghost", "dog"]))
    for one in batches[:2]:
        trainer.step([one])
    terms, sizes, changes = [], [], []
    weights = {name: student.value(name).detach() for name in student.names}
    ours = method.loss(student, batch)
    for row in range(2):
        at = batch["latents"][row : row + 1], batch["timestep"][row : row + 1]
        pair = batch["concept"][row : row + 1], batch["empty"][row : row + 1]
        wide.weights.write(weights)
        with torch.no_grad():
            own, empty = (wide.predict(*at, condition) for condition in pair)
        wide.weights.write(dict.fromkeys(weights))
        product = (own - empty) * batch["representation"][row]
        terms.append(product.mean())
        sizes.append(product.norm())
        changes.append(
            sum(float(c.detach().abs().mean()) for c in student.coefficients(row).values())
        )
    each = [sizes[0] / sizes[k] * terms[k] + method.reg_beta * changes[k] for k in range(2)]
    assert ours["loss"].item() == pytest.approx(float(sum(each)) / 2, rel=1e-3)
    assert ours["direction1"].item() == pytest.approx(float(terms[1]), rel=1e-3)


def test_a_joint_change_is_taken_when_its_rule_fires(wide: Model) -> None:
    """It is trained on, by the sum of all gradients so far, but that shows no more."""
    policy = Policy.of(["ghost", "dog"])
    method = SepCE(**{**JOINT, "thresholds": (1e9, -1e9)})
    student = method.student(wide, policy, 0)
    assert isinstance(student, JointShifts)
    trainer, batches = Trainer(method, student), taken(method, student, policy, 3)
    history = []
    for number in range(FIRST_TEST + 2):
        history.append(trainer.step([batches[number % 3]]))
        if number == FIRST_TEST - 1:
            then = {n: c.detach().clone() for n, c in student.coefficients(0).items()}
    ghost, dog = (part.payload for part in method.parts(student, policy))
    assert isinstance(ghost, LowRank)
    assert isinstance(dog, LowRank)
    for name in student.names:
        assert torch.equal(ghost.up[name], then[name])
        assert not torch.equal(ghost.up[name], student.coefficients(0)[name])
        assert torch.equal(dog.up[name], student.coefficients(1)[name])
    assert not method.finished(history)
    assert method.model_copy(update={"thresholds": (1e9, 1e9)}).finished(history)
    assert not method.model_copy(update={"thresholds": (1e9, 1e9)}).finished(history[:11])


def test_a_killed_joint_run_ends_the_same(
    wide: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "SAVE_EVERY", 1)
    monkeypatch.setattr(saving, "SAVE_SHARE", 1.0)
    policy, method = Policy.of(["ghost", "dog"]), SepCE(**{**JOINT, "iterations": 4})
    whole = erase(wide, policy, method)
    with stopped_in(3):
        erase(wide, policy, method, checkpoints=tmp_path)
    assert erase(wide, policy, method, checkpoints=tmp_path).id == whole.id
    result = train(method, wide, policy, seed=0)
    assert [part.concepts[0].target for part in result.parts] == ["ghost", "dog"]


def test_released_defaults() -> None:
    method = SepCE(fidelity="original", lr=0.1)
    assert (method.basis, method.max_base, method.gradients) == ("rref", 0, "cumulative")
    assert (method.lr, method.scale_factor, method.threshold) == (0.1, 1e-2, 5e-5)
    assert (SepCE().basis, SepCE().max_base) == ("reduced", 32)
    assert SepCE(basis="orthonormal").max_base == 0
    assert SepCE(basis="orthonormal", max_base=5).max_base == 5
