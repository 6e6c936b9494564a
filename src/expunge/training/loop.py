"""The one training loop: steps, processes, checkpoints, progress, early stop."""

import importlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple

import torch
from torch import Tensor, nn

from expunge.concepts import Policy
from expunge.edits.edit import Edit
from expunge.errors import ExpungeError
from expunge.files import PathLike
from expunge.method.base import Method, Part, S, Staged, Trained
from expunge.method.batch import Batch
from expunge.method.run import Run
from expunge.models import Model
from expunge.progress import track
from expunge.training import checkpoint
from expunge.training.checkpoint import History
from expunge.training.saving import Saving, run_digest, step_log
from expunge.training.tracking import accelerator_for

if TYPE_CHECKING:
    from accelerate import Accelerator


class TrainingResult(NamedTuple):
    """What a training gives."""

    parts: Sequence[Part]
    """What the training added."""
    start: Edit | None
    """The edit that it started from, if any."""
    steps: int
    """Steps taken; fewer than the method's ``iterations`` if it ended early."""


@dataclass(frozen=True)
class Monitor:
    """Scores the model during a training, and may end the training."""

    every: int
    """Steps between two scorings."""
    score: Callable[[Model], Mapping[str, float]]
    """Scores of the model as it is then, by name."""
    stop: Callable[[Mapping[str, float]], bool] = lambda scores: False
    """Whether training ends with these scores."""


class Trainer(Generic[S]):
    """A student, its optimiser and its learning rate, on one process or several."""

    def __init__(
        self, method: Trained[S], student: S, accelerator: "Accelerator | None" = None
    ) -> None:
        self.method = method
        self.student = student
        self.accelerator = accelerator
        self.optimizer = _optimizer(method, student)
        self.schedule = method.pace(self.optimizer, method.iterations)
        self.sums: dict[str, Tensor] = {}
        """Gradients of all steps so far, by weight, where they aren't reset."""

    def restored(self, folder: Path, run: str) -> History:
        """Continue from a checkpoint; returns the history up to it."""
        history = checkpoint.restore(folder, run, self.student, self.optimizer, self.sums)
        self.pace(len(history))
        return history

    def pace(self, step: int) -> None:
        """Set the learning rate of a step."""
        self.schedule.load_state_dict({**self.schedule.state_dict(), "last_epoch": step})
        for group, lr, factor in zip(
            self.optimizer.param_groups,
            self.schedule.base_lrs,
            self.schedule.lr_lambdas,
            strict=True,
        ):
            group["lr"] = lr * factor(step)

    def save(self, folder: Path, run: str, steps: int) -> None:
        """Write the state after so many steps."""
        checkpoint.save(folder, run, steps, self.student, self.optimizer, self.sums)

    def reach(self, step: int, seed: int) -> None:
        """Get ready for a step: a new stage starts in its own way, with a fresh optimiser."""
        if not isinstance(self.method, Staged):
            return
        stage = self.method.stage(step)
        if step == 0 or stage != self.method.stage(step - 1):
            self.optimizer.state.clear()
            self.method.enter(self.student, stage, seed)

    def step(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Take a step of the optimiser; returns the losses before it, averaged over the batches.

        ``batches`` are those of this process; ``accumulation`` counts those of all.

        Raises:
            ExpungeError: a loss isn't finite.
        """
        self.optimizer.zero_grad(set_to_none=True)
        records = [self._gradients(batch) for batch in batches]
        record = self._shared({key: sum(one[key] for one in records) for key in records[0]})
        if self.method.gradient_plan.cumulative:
            self._add_up()
        if self.method.max_grad_norm:
            nn.utils.clip_grad_norm_(self.student.weights.values(), self.method.max_grad_norm)
        self.optimizer.step()
        self.schedule.step()
        return record

    def _gradients(self, batch: Batch) -> dict[str, float]:
        """Add a batch's gradients to the weights'; its part of the step's record."""
        share = 1 / self.method.accumulation
        device = self.student.model.device.type
        plan = self.method.gradient_plan
        with torch.autocast(device, torch.bfloat16, enabled=plan.half):
            terms = self.method.loss(self.student, batch)
        named = terms if isinstance(terms, Mapping) else {"loss": terms}
        record = {key: value.item() for key, value in named.items()}
        if not math.isfinite(record["loss"]):
            raise ExpungeError(
                f"the loss became {record['loss']}; use a smaller learning rate or negative "
                "guidance, or a model in higher precision"
            )
        if named["loss"].requires_grad:
            loss = share * named["loss"]
            if plan.checkpointing:  # computes the UNet again, with these weights
                self.student.for_batch(batch).within(loss.backward)
            else:
                loss.backward()  # type: ignore[no-untyped-call]
        return {key: share * value for key, value in record.items()}

    def _shared(self, record: dict[str, float]) -> dict[str, float]:
        """Sum gradients and records over all processes."""
        if self.accelerator is None or self.accelerator.num_processes == 1:
            return record
        weights = list(self.student.weights.values())
        used = torch.tensor([float(weight.grad is not None) for weight in weights])
        used = self.accelerator.reduce(used.to(self.student.model.device), reduction="sum")
        for weight, processes in zip(weights, used.tolist(), strict=True):
            if processes:  # the optimiser leaves alone what has no gradient anywhere
                gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
                weight.grad = self.accelerator.reduce(gradient, reduction="sum")
        values = torch.tensor(list(record.values()), dtype=torch.float64)
        total = self.accelerator.reduce(values.to(self.student.model.device), reduction="sum")
        return dict(zip(record, total.tolist(), strict=True))

    def _add_up(self) -> None:
        for name, weight in self.student.weights.items():
            if weight.grad is not None:
                self.sums[name] = self.sums.get(name, 0) + weight.grad
            if name in self.sums:
                weight.grad = self.sums[name].clone()


def _optimizer(method: Trained[S], student: S) -> torch.optim.Optimizer:
    path, _, name = method.optimizer.rpartition(".")
    try:
        make = getattr(importlib.import_module(path), name)
        made = make(method.groups(student), lr=method.lr, weight_decay=method.weight_decay)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ExpungeError(f"optimizer {method.optimizer!r} can't be used: {error}") from error
    optimizer: torch.optim.Optimizer = made
    return optimizer


def fit(method: Trained[S], student: S, batches: Iterable[Batch]) -> list[float]:
    """Train on the given batches, one step each; returns the losses."""
    trainer = Trainer(method, student)
    return [trainer.step([batch])["loss"] for batch in batches]


def train(
    method: Method,
    model: Model,
    policy: Policy,
    *,
    seed: int,
    checkpoints: PathLike | None = None,
    monitor: Monitor | None = None,
    tracker: str | None = None,
) -> TrainingResult:
    """Train a method to its end, from the last checkpoint if there is one.

    The state is written as ``saving.Saving`` says, and a batch
    depends on its number, the seed and the weights alone: a run that was killed ends with the same
    weights. Under ``accelerate launch`` the processes share the batches of each step, so that their
    number doesn't change the result but for rounding.

    Args:
        method: what to minimise.
        model: the base model.
        policy: what to erase and to keep.
        seed: decides every random draw.
        checkpoints: folder of the state and of ``losses.jsonl``.
        monitor: scores the model on the way and may end the training.
        tracker: an experiment tracker that accelerate knows, e.g. tensorboard.
    """
    if not isinstance(method, Trained):
        raise ExpungeError(f"{method.name} is solved, not trained")
    accelerator = accelerator_for(model, checkpoints, tracker)
    if method.accumulation % accelerator.num_processes:
        raise ExpungeError(
            f"accumulation: {method.accumulation} batches a step can't be shared by "
            f"{accelerator.num_processes} processes; make it a multiple of that"
        )
    student = method.student(model, policy, seed)
    trainer = Trainer(method, student, accelerator)
    folder = Path(checkpoints) if checkpoints else None
    name = run_digest(method, model, policy, seed) if folder else ""
    history = trainer.restored(folder, name) if folder else []
    run = Run(student, policy, seed, folder, accelerator)
    with _checkpointing(model.denoiser, method.gradient_plan.checkpointing):
        _steps(trainer, run, history, name, monitor)
    accelerator.end_training()
    return TrainingResult(method.parts(student, policy), student.start, len(history))


def _steps(
    trainer: Trainer[S], run: Run[S], history: History, name: str, monitor: Monitor | None
) -> None:
    """Take the remaining steps and add their losses to ``history``."""
    method, log = trainer.method, step_log(run, history)
    ended = partial(_ended, method, history, monitor)
    todo = range(len(history), method.iterations)
    if ended():
        return
    count = method.accumulation // run.processes
    numbers = [
        n
        for step in todo
        for n in run.own(range(step * method.accumulation, (step + 1) * method.accumulation))
    ]
    batches = method.batches(run, numbers)
    folder = run.folder if run.process == 0 else None
    saving = Saving(partial(trainer.save, folder, name) if folder else None, len(history))
    for done in track(todo, f"training {method.name}", total=method.iterations, start=todo.start):
        trainer.reach(done, run.seed)
        own = list(islice(batches, count))
        if len(own) < count:
            raise ExpungeError(f"{method.name} has no batch to train on; name more to erase")
        history.append(trainer.step(own))
        if monitor and (done + 1) % monitor.every == 0:
            history[-1] |= _scores(run, monitor)
        log(history[-1])
        early = ended()
        last = early or done + 1 == method.iterations
        saving.after(done + 1, last=last)
        if early:
            return


def _ended(method: Trained[Any], history: History, monitor: Monitor | None) -> bool:
    if not history:
        return False
    if monitor and len(history) % monitor.every == 0 and monitor.stop(history[-1]):
        return True
    return method.finished(history)


def _scores(run: Run, monitor: Monitor) -> dict[str, float]:
    """The monitor's scores of the model as it is now; the same on every process."""
    with run.student.shown() as model:
        return dict(run.agreed(monitor.score(model)))


@contextmanager
def _checkpointing(unet: Any, wanted: bool) -> Iterator[None]:
    if wanted:
        unet.enable_gradient_checkpointing()
    try:
        yield
    finally:
        if wanted:
            unet.disable_gradient_checkpointing()
