"""What the loop promises beyond resuming: processes, forms of the change, early stop, the log."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from expunge import Edit, ExpungeError, Model, Policy, erase
from expunge.edits.applied import edited_weights
from expunge.edits.payloads import LowRank
from expunge.method.run import Run
from expunge.method.student import Student
from expunge.methods import configured
from expunge.methods.esd.method import ESD
from expunge.models import Condition
from expunge.training.loop import Monitor, Trainer, train
from toy_batches import same

SHORT: dict[str, Any] = {"iterations": 6, "trajectories": 3, "num_inference_steps": 4}
TRAIN = """
import sys
from expunge import erase, load
edit = erase(load(sys.argv[1], device="cpu"), "ghost", "esd", checkpoints=sys.argv[2],
             iterations=6, trajectories=3, num_inference_steps=4, accumulation=2, lr=1e-3)
edit.save(f"{sys.argv[2]}/edit-{__import__('os').environ.get('RANK', 0)}.safetensors")
"""
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes"]


def test_two_processes_train_what_one_trains(pico_folder: Path, tmp_path: Path) -> None:
    """To single precision: sums of gradients are rounded in another order."""
    script = tmp_path / "train.py"
    script.write_text(TRAIN)
    for count in (1, 2):
        folder = tmp_path / str(count)
        folder.mkdir()
        port = f"--main_process_port={29500 + count + torch.randint(1000, ()).item()}"
        several = ["--multi_gpu"] if count > 1 else []
        command = [*LAUNCH, str(count), port, *several, str(script), str(pico_folder), str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two, other = (
        Edit.load(tmp_path / name).components[0].payload.tensors()
        for name in ("1/edit-0.safetensors", "2/edit-0.safetensors", "2/edit-1.safetensors")
    )
    assert all(torch.equal(two[name], other[name]) for name in two)
    distance = sum(float((one[name] - two[name]).square().sum()) for name in one) ** 0.5
    size = sum(float(change.square().sum()) for change in one.values()) ** 0.5
    assert distance < 1e-3 * size
    logs = [(tmp_path / name / "losses.jsonl").read_text().splitlines() for name in "12"]
    losses = [[json.loads(line)["loss"] for line in log] for log in logs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def joined(parts: list[Any]) -> Any:
    return (Condition if isinstance(parts[0], Condition) else torch).cat(parts)


def test_batches_that_processes_cannot_share_are_refused(
    pico: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate import Accelerator

    monkeypatch.setattr(Accelerator, "num_processes", 2)
    with pytest.raises(ExpungeError, match="multiple"):
        erase(pico, "ghost", "esd", **SHORT)


def test_accumulated_batches_are_one_large_batch(pico: Model) -> None:
    names, policy = pico.select("cross_attention.kv"), Policy.of("ghost")
    small = ESD(accumulation=2, batch_size=3, train_method="x-strict", **SHORT)
    large = ESD(accumulation=1, batch_size=6, train_method="x-strict", **SHORT)
    students = [Student(pico, names) for _ in range(2)]
    batches = list(small.batches(Run(students[0], policy, 0), range(2)))
    Trainer(small, students[0]).step(batches)
    joint = {key: joined([one[key] for one in batches]) for key in batches[0]}
    Trainer(large, students[1]).step([joint])
    for name in names:
        one, two = (student.weights[name].grad for student in students)
        assert torch.allclose(one, two, rtol=1e-3, atol=1e-3 * float(two.abs().max()))


def test_gradients_can_add_up_over_the_steps(pico: Model) -> None:
    values = {**SHORT, "optimizer": "torch.optim.SGD", "lr": 1e-12, "train_method": "x-strict"}
    policy, names = Policy.of("ghost"), pico.select("cross_attention.kv")
    reset, cumulative = (ESD(gradients=kind, **values) for kind in ("reset", "cumulative"))
    student = Student(pico, names)
    one, two = reset.batches(Run(student, policy, 0), range(2))
    trainer = Trainer(reset, student)
    sums = dict.fromkeys(names, torch.zeros(()))
    for batch in (one, two):
        trainer.step([batch])
        sums = {name: sums[name] + student.weights[name].grad for name in names}
    student = Student(pico, names)
    trainer = Trainer(cumulative, student)
    trainer.step([one])
    trainer.step([two])
    for name in names:
        assert torch.allclose(student.weights[name].grad, sums[name], rtol=1e-3, atol=1e-9)


def test_a_low_rank_change_is_stored_as_factors(pico: Model, tmp_path: Path) -> None:
    edit = erase(pico, "ghost", "esd", rank=2, lr=1e-2, **SHORT)
    payload = edit.components[0].payload
    assert isinstance(payload, LowRank)
    ranks = {
        torch.linalg.matrix_rank(payload.change(n, pico.base_weight(n))).item() for n in edit.names
    }
    assert ranks == {2}
    edit.save(tmp_path / "edit.safetensors")
    assert Edit.load(tmp_path / "edit.safetensors").id == edit.id


@pytest.mark.parametrize("rank", [0, 2])
def test_checkpointed_activations_give_the_same_gradients(pico: Model, rank: int) -> None:
    policy, names = Policy.of("ghost"), pico.select("cross_attention")
    gradients = []
    for wanted in (False, True):
        method = ESD(gradient_checkpointing=wanted, rank=rank, lr=1e-2, **SHORT)
        student = Student(pico, names, rank=rank)
        trainer = Trainer(method, student)
        batches = list(method.batches(Run(student, policy, 0), range(2)))
        if wanted:
            pico.denoiser.enable_gradient_checkpointing()
        try:
            for batch in batches:  # after the first step the student isn't the base any more
                trainer.step([batch])
        finally:
            pico.denoiser.disable_gradient_checkpointing()
        gradients.append(torch.cat([w.grad.flatten() for w in student.weights.values()]))
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-5 * float(gradients[0].abs().max()))


def test_training_goes_on_from_an_edit(pico: Model) -> None:
    """The start is part of what the student predicts, and not of what training adds."""
    names = pico.select("cross_attention.kv")
    edit = erase(pico, "ghost", "uce")
    student = Student(pico, pico.select("self_attention"), start=edit)
    latents, timestep = torch.randn(1, 4, 8, 8), torch.tensor([500])
    condition = pico.condition(["ghost"])
    predicted = student.predict(latents, timestep, condition)
    assert torch.equal(predicted, student.began(latents, timestep, condition))
    assert not torch.allclose(predicted, student.teach(latents, timestep, condition))
    weights = edited_weights(pico, edit.components, names)
    assert all(torch.equal(weights[name].float(), student.fixed[name]) for name in names)
    assert all(float(change.abs().max()) == 0 for change in student.changes().values())


def test_a_monitor_sees_the_model_and_ends_the_training(pico: Model, tmp_path: Path) -> None:
    seen: list[float] = []
    names = pico.select("cross_attention")

    def score(model: Model) -> dict[str, float]:
        weights = (model.denoiser.get_parameter(name) - model.base_weight(name) for name in names)
        seen.append(sum(float(change.abs().sum()) for change in weights))
        return {"moved": seen[-1]}

    monitor = Monitor(every=2, score=score, stop=lambda scores: len(seen) == 2)
    before = pico.denoiser.get_parameter(names[0]).clone()
    result = train(
        configured("esd", lr=1e-3, **SHORT), pico, Policy.of("ghost"), seed=0,
        checkpoints=tmp_path, monitor=monitor,
    )  # fmt: skip
    assert result.steps == 4
    assert 0 < seen[0] < seen[1]
    assert torch.equal(pico.denoiser.get_parameter(names[0]), before)
    log = [json.loads(line) for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    assert [record.get("moved") for record in log] == [None, seen[0], None, seen[1]]
    again = train(
        configured("esd", lr=1e-3, **SHORT), pico, Policy.of("ghost"), seed=0,
        checkpoints=tmp_path, monitor=monitor,
    )  # fmt: skip
    assert again.steps == 4


def test_trajectories_are_drawn_once(
    pico: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, policy = ESD(**SHORT), Policy.of("ghost")
    run = Run(Student(pico, method.parameters(pico)), policy, 0, tmp_path)
    first = next(method.batches(run, range(1)))

    def fail(*_: object) -> None:
        raise AssertionError("drawn again")

    monkeypatch.setattr(pico, "predict", fail)
    again = next(method.batches(run, range(1)))
    assert same(first, again)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"optimizer": "torch.optim.Nothing"}, "optimizer 'torch.optim.Nothing' can't be used"),
        ({"optimizer": "Adam"}, "optimizer 'Adam' can't be used"),
        ({"lr_schedule": "zigzag"}, "lr_schedule"),
    ],
)
def test_wrong_settings_of_the_loop_say_which(
    pico: Model, values: dict[str, Any], words: str
) -> None:
    with pytest.raises(ExpungeError, match=words):
        erase(pico, "ghost", "esd", **SHORT, **values)
