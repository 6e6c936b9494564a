"""``expunge erase``: an edit file from a list of concepts."""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from expunge.cli import resumable
from expunge.cli.options import (
    NO_CONCEPTS,
    ErasedOptions,
    MethodSettings,
    ModelName,
    OptionGroup,
    assignments,
)
from expunge.concepts import Policy
from expunge.edits.edit import Edit
from expunge.errors import ExpungeError
from expunge.files import check_output
from expunge.method.base import Method, Trained
from expunge.methods import configured, refuse_for_training, settings
from expunge.methods import erase as compute
from expunge.models import Model, load
from expunge.progress import shown

if TYPE_CHECKING:
    from expunge.training.loop import Monitor


class TrainingOptions(OptionGroup):
    """Options that only methods that train can use."""

    checkpoints: Path | None = None
    """Folder for the state of a training; the same command continues from there. This and the
    next four options are only for methods that "expunge methods" says train."""
    stop_when: str | None = None
    """Ends a training early, e.g. "erased<=0.05" or "erased<=0.05 and kept>=0.8": shares of a few
    pictures in which the erased words still give the concept, and the kept words theirs."""
    look_every: int | None = None
    """Steps between two looks at these shares; 20 by default."""
    judge: str | None = None
    """Who looks: "emoji" (the default, for the bundled model), or any detector that classifies,
    with weights behind a colon: efficientnet, classifier:FOLDER, trained:FILE, clip:FOLDER."""
    tracker: str | None = None
    """An experiment tracker that a training reports to, e.g. tensorboard."""

    def check(self, method: Method) -> None:
        """See that the method can use what is given.

        Raises:
            ExpungeError: it doesn't train, or the tracker can't be used.
        """
        refuse_for_training(
            method,
            **{
                "--checkpoints": self.checkpoints,
                "--stop-when": self.stop_when,
                "--tracker": self.tracker,
            },
        )
        if self.tracker:
            from expunge.training.tracking import check_tracker

            check_tracker(self.tracker, self.checkpoints)

    def monitor(self, policy: Policy, method: Method, seed: int) -> "Monitor | None":
        """What looks at the training, if the options say when to stop it."""
        if self.stop_when is None:
            if self.look_every is not None or self.judge:
                raise ExpungeError("--look-every and --judge: only with --stop-when")
            return None
        from expunge.training.monitor import EVERY, monitor

        return monitor(
            self.stop_when,
            policy,
            every=EVERY if self.look_every is None else self.look_every,
            judge=self.judge or "emoji",
            contexts=getattr(method, "contexts", ()),
            seed=seed,
        )


NO_TRAINING = TrainingOptions()


def erase(
    *,
    output: Path,
    concepts: ErasedOptions = NO_CONCEPTS,
    model: ModelName = "emoji",
    method: str = "uce",
    preset: str | None = None,
    start: Path | None = None,
    setting: MethodSettings = (),
    seed: int = 0,
    training: Annotated[TrainingOptions, Parameter(name="*")] = NO_TRAINING,
) -> None:
    """Make an edit that erases concepts from a model.

    The model itself stays as it is; give the edit to "expunge generate" or "expunge evaluate".
    A training uses several processes with
    "accelerate launch --multi_gpu --num_processes 2 -m expunge erase ...".

    Parameters
    ----------
    output:
        The edit file to write, e.g. santa.safetensors.
    method:
        One of "expunge methods".
    preset:
        Settings to start from, by a name that "expunge methods METHOD" lists.
    start:
        What the method starts from instead of its own first stage, for rece and trce-steering: an
        edit file, or a published model as "expunge import" reads it.
    seed:
        Decides every random draw.
    """
    if output.suffix != ".safetensors":
        raise ExpungeError(f"--output {output}: an edit is a .safetensors file")
    policy = concepts.to_policy()
    chosen = configured(method, **_named(method, preset, start) | assignments(method, setting))
    training.check(chosen)
    check_output(output)
    if training.checkpoints:
        check_output(training.checkpoints, folder=True)
    watch = training.monitor(policy, chosen, seed)
    first = os.environ.get("RANK", "0") == "0"  # of the processes of accelerate launch
    console = Console(stderr=True, quiet=not first, markup=False)
    saved = f"the steps up to the last checkpoint in {training.checkpoints}"
    with ExitStack() as stack:
        if training.checkpoints:
            stack.enter_context(resumable(saved))
        stack.enter_context(shown(console))
        whole = bool(chosen.needed - {"text"})
        edit = _made(load(model, whole=whole), policy, chosen, seed, training, watch)
    if first:
        edit.save(output)
    console.print(f"{output}: {edit.summary()}{_early(chosen, edit)}", highlight=False)


def _named(method: str, preset: str | None, start: Path | None) -> dict[str, Any]:
    """The settings that have an option of their own."""
    if start and "start" not in settings(method).model_fields:
        raise ExpungeError(f"--start: {method} starts from the base itself; leave this out")
    given = {"preset": preset, "start": start}
    return {name: value for name, value in given.items() if value}


def _made(
    base: Model,
    policy: Policy,
    method: Method,
    seed: int,
    training: TrainingOptions,
    watch: "Monitor | None",
) -> Edit:
    if watch:
        from expunge.training.monitor import check

        check(watch, base)
    return compute(
        base,
        policy,
        method,
        seed=seed,
        checkpoints=training.checkpoints,
        monitor=watch,
        tracker=training.tracker,
    )


def _early(method: Method, edit: Edit) -> str:
    """A remark where a training ended early."""
    steps = edit.provenance[-1].steps
    if not isinstance(method, Trained) or steps is None or steps == method.iterations:
        return ""
    return f", ended after {steps} of {method.iterations} steps"
