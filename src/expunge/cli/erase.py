"""``expunge erase``: an edit file from a list of concepts."""

import difflib
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import yaml
from cyclopts import Parameter
from pydantic import ValidationError
from rich.console import Console

from expunge.cli import resumable
from expunge.concepts import Concept, Kind, Policy, explain
from expunge.edits.edit import Edit
from expunge.errors import ExpungeError
from expunge.method.base import Method, Trained
from expunge.methods import configured, refuse_for_training, settings
from expunge.methods import erase as compute
from expunge.models import load
from expunge.progress import shown
from expunge.training.loop import Monitor
from expunge.training.monitor import EVERY, check, monitor


def erase(
    *,
    output: Path,
    concept: tuple[str, ...] = (),
    synonym: tuple[str, ...] = (),
    kind: Kind | None = None,
    anchor: str | None = None,
    keep: tuple[str, ...] = (),
    policy: Path | None = None,
    model: str = "emoji",
    method: str = "uce",
    preset: str | None = None,
    setting: Annotated[tuple[str, ...], Parameter(name="--set")] = (),
    seed: int = 0,
    checkpoints: Path | None = None,
    stop_when: str | None = None,
    look_every: int | None = None,
    judge: str | None = None,
    tracker: str | None = None,
) -> None:
    """Make an edit that erases concepts from a model.

    The model itself stays as it is; give the edit to "expunge generate" or "expunge evaluate".
    A training uses several processes with
    "accelerate launch --multi_gpu --num_processes 2 -m expunge erase ...".

    Parameters
    ----------
    output:
        The edit file to write, e.g. santa.safetensors.
    concept:
        What to erase, e.g. "santa claus"; repeat it for more.
    synonym:
        Another word for the concept, erased too; only with a single --concept.
    kind:
        What the concepts are; decides the sentences around them. Objects by default.
    anchor:
        What is drawn instead; by default what suits the kind.
    keep:
        A prompt whose pictures must stay; repeat it for more.
    policy:
        YAML file with the entries erase and keep, instead of the options above.
    model:
        "emoji", a folder, or a Hugging Face id.
    method:
        One of "expunge methods".
    preset:
        Settings to start from, by a name that "expunge methods METHOD" lists.
    setting:
        A setting of the method as name=value; repeat it for more. It takes precedence over
        the preset's.
    seed:
        Decides every random draw.
    checkpoints:
        Folder for the state of a training; the same command continues from there. Like the next
        four options, only for methods that "expunge methods" says train.
    stop_when:
        Ends a training early, e.g. "erased<=0.05" or "erased<=0.05 and kept>=0.8": shares of a few
        pictures in which the erased words still give the concept, and the kept words theirs.
    look_every:
        Steps between two looks at these shares; 20 by default.
    judge:
        Who looks: "emoji" (the default, for the bundled model), or any detector that classifies,
        with weights behind a colon: efficientnet, classifier:FOLDER, trained:FILE, clip:FOLDER.
    tracker:
        An experiment tracker that a training reports to, e.g. tensorboard.
    """
    if output.suffix != ".safetensors":
        raise ExpungeError(f"--output {output}: an edit is a .safetensors file")
    described = {"synonyms": synonym or None, "kind": kind, "anchor": anchor}
    given = {name: value for name, value in described.items() if value is not None}
    wanted = policy_of(policy, concept, given, keep)
    named = {"preset": preset} if preset else {}
    chosen = configured(method, **named | assignments(method, setting))
    for_training = {"--checkpoints": checkpoints, "--stop-when": stop_when, "--tracker": tracker}
    refuse_for_training(chosen, **for_training)
    watch = monitor_of(stop_when, look_every, judge, wanted, chosen, seed)
    if tracker:
        from expunge.training.tracking import check_tracker

        check_tracker(tracker, checkpoints)
    first = os.environ.get("RANK", "0") == "0"  # of the processes of accelerate launch
    console = Console(stderr=True, quiet=not first)
    with ExitStack() as stack:
        if checkpoints:
            stack.enter_context(resumable(f"the steps up to the last checkpoint in {checkpoints}"))
        stack.enter_context(shown(console))
        base = load(model)
        if watch:
            check(watch, base)
        edit = compute(
            base,
            wanted,
            chosen,
            seed=seed,
            checkpoints=checkpoints,
            monitor=watch,
            tracker=tracker,
        )
    if first:
        edit.save(output)
    console.print(f"{output}: {edit.summary()}{_early(chosen, edit)}", highlight=False)


def monitor_of(
    text: str | None,
    every: int | None,
    judge: str | None,
    policy: Policy,
    method: Method,
    seed: int,
) -> Monitor | None:
    """What looks at the training, if the text says when to stop it."""
    if text is None:
        if every is not None or judge:
            raise ExpungeError("--look-every and --judge: only with --stop-when")
        return None
    return monitor(
        text,
        policy,
        every=EVERY if every is None else every,
        judge=judge or "emoji",
        contexts=getattr(method, "contexts", ()),
        seed=seed,
    )


def _early(method: Method, edit: Edit) -> str:
    """A remark where a training ended before its time."""
    steps = edit.provenance[-1].steps
    if not isinstance(method, Trained) or steps is None or steps == method.iterations:
        return ""
    return f", ended after {steps} of {method.iterations} steps"


def policy_of(
    path: Path | None, concepts: Sequence[str], described: dict[str, Any], keep: Sequence[str]
) -> Policy:
    """The policy of a file, or of the options that stand for one."""
    if (path is None) == (not concepts):
        raise ExpungeError("say what to erase either with --concept WORDS or with --policy FILE")
    if path:
        if described or keep:
            raise ExpungeError(
                "--synonym, --kind, --anchor and --keep: write them into the policy file"
            )
        return Policy.load(path)
    if described.get("synonyms") and len(concepts) > 1:
        raise ExpungeError("whose --synonym? Several concepts with synonyms need a --policy file")
    try:
        listed = tuple(Concept(target=words, **described) for words in concepts)
        return Policy(erase=listed, keep=tuple(keep))
    except ValidationError as error:
        raise ExpungeError(explain(error)) from None


def assignments(method: str, assigned: Sequence[str]) -> dict[str, Any]:
    """``name=value`` texts as settings of the method."""
    fields = settings(method).model_fields
    values: dict[str, Any] = {}
    for text in assigned:
        name, equals, value = text.partition("=")
        if not equals:
            raise ExpungeError(f"--set {text}: write name=value")
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=3, cutoff=0.5) or fields
            raise ExpungeError(
                f"--set {text}: {method} has no setting {name!r}; did you mean {', '.join(near)}?"
            )
        values[name] = _value(text, value)
    return values


def _value(text: str, value: str) -> Any:
    """``null``, a ``[list]``, or words and numbers, which the settings class converts."""
    if value == "null":
        return None
    if not value.startswith("["):
        return value
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        raise ExpungeError(f"--set {text}: write a list as [one, two]") from None
