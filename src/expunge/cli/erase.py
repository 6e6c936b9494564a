"""``expunge erase``: an edit file from a list of concepts."""

import difflib
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
from expunge.errors import ExpungeError
from expunge.methods import configured, settings
from expunge.methods import erase as compute
from expunge.models import load
from expunge.progress import shown


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
    setting: Annotated[tuple[str, ...], Parameter(name="--set")] = (),
    seed: int = 0,
    checkpoints: Path | None = None,
) -> None:
    """Make an edit that erases concepts from a model.

    The model itself stays as it is; give the edit to "expunge generate" or "expunge evaluate".

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
    setting:
        A setting of the method as name=value; repeat it for more.
    seed:
        Decides every random draw.
    checkpoints:
        Folder for the state of a training; the same command continues from there.
    """
    if output.suffix != ".safetensors":
        raise ExpungeError(f"--output {output}: an edit is a .safetensors file")
    described = {"synonyms": synonym or None, "kind": kind, "anchor": anchor}
    given = {name: value for name, value in described.items() if value is not None}
    wanted = policy_of(policy, concept, given, keep)
    chosen = configured(method, **assignments(method, setting))
    console = Console(stderr=True)
    with ExitStack() as stack:
        if checkpoints:
            stack.enter_context(resumable(f"the steps up to the last checkpoint in {checkpoints}"))
        stack.enter_context(shown(console))
        edit = compute(load(model), wanted, chosen, seed=seed, checkpoints=checkpoints)
    edit.save(output)
    console.print(f"{output}: {edit.summary()}", highlight=False)


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
