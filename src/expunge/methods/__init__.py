"""All methods by name, and ``erase``, which runs one of them."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError

from expunge.concepts import Concept, Policy, explain
from expunge.edits.applied import check_unedited
from expunge.edits.edit import Edit
from expunge.errors import ExpungeError
from expunge.files import PathLike
from expunge.method.base import Method, Part, Solves, Trained
from expunge.method.edits import edit_of
from expunge.method.starting import Starting
from expunge.method.used import check_turns, used
from expunge.method.wording import checked
from expunge.models import Model
from expunge.registry import Registry

if TYPE_CHECKING:
    from expunge.training.loop import Monitor

METHODS: Registry[type[Method]] = Registry(
    "method",
    {
        "ac": "expunge.methods.ac.method:AblatingConcepts",
        "cie": "expunge.methods.sepme.cie:CiE",
        "cpe": "expunge.methods.cpe.method:CPE",
        "esd": "expunge.methods.esd.method:ESD",
        "fmn": "expunge.methods.fmn.method:ForgetMeNot",
        "mace": "expunge.methods.mace.method:MACE",
        "negative-prompt": "expunge.methods.negative_prompt:NegativePrompting",
        "rece": "expunge.methods.rece.method:RECE",
        "safree": "expunge.methods.safree:SAFREE",
        "sepce": "expunge.methods.sepme.sepce:SepCE",
        "sld": "expunge.methods.sld:SLD",
        "spm": "expunge.methods.spm.method:SPM",
        "trce": "expunge.methods.trce.closed:TRCE",
        "trce-steering": "expunge.methods.trce.steering:TRCESteering",
        "uce": "expunge.methods.uce.method:UCE",
        "uce-debias": "expunge.methods.uce.debias:Debias",
    },
    entry_points="expunge.methods",
)


def settings(name: str) -> type[Method]:
    """The method of this name: a pydantic class whose fields are its settings."""
    return METHODS.get(name)


def configured(name: str, **values: Any) -> Method:
    """A method with these settings.

    Raises:
        ExpungeError: the method or a setting is unknown, or a value is out of range.
    """
    try:
        return settings(name)(**values)
    except ValidationError as error:
        fields = ", ".join(settings(name).model_fields)
        raise ExpungeError(f"{name}: {explain(error)} (settings: {fields})") from None


@torch.inference_mode(False)
@torch.enable_grad()
def erase(
    model: Model,
    concepts: str | Concept | Policy | Iterable[str | Concept],
    method: str | Method = "uce",
    *,
    seed: int = 0,
    checkpoints: PathLike | None = None,
    monitor: "Monitor | None" = None,
    tracker: str | None = None,
    **values: Any,
) -> Edit:
    """Compute the edit that makes ``model`` stop drawing ``concepts``; the model stays as it is.

    Args:
        model: a base model, without any edit applied.
        concepts: words, ``Concept``s, or a ``Policy``.
        method: a name listed by ``expunge methods``, or a configured method.
        seed: decides every random draw.
        checkpoints: a folder from which a stopped training resumes, with the same result.
        monitor: watches a training and may end it.
        tracker: an experiment tracker known to accelerate, to which a training reports. Like
            ``checkpoints`` and ``monitor``, it is refused if the method doesn't train.
        **values: settings of the method.

    Raises:
        ExpungeError: a concept, a method or a setting is wrong, words contradict each other as the
            model reads them, or the model is edited already.

    Warns:
        CutOff: prompts are longer than the model reads.
        Ignored: the method has no use for prompts to keep, or for an anchor. They aren't recorded.
    """
    policy = Policy.of(concepts)
    if values and not isinstance(method, str):
        raise ExpungeError(f"{', '.join(values)}: give settings to the method that you configure")
    chosen = configured(method, **values) if isinstance(method, str) else method
    check_unedited(model, "edits are made for the base")
    chosen.check_family(model)
    if chosen.needed - {"text"}:
        model.check_draws()
    if chosen.fidelity == "original":
        _check_released(chosen, policy)
    policy = checked(model, chosen, used(chosen, policy))
    check_turns(chosen, policy)
    chosen = chosen.settled(model)
    options = {"checkpoints": checkpoints, "monitor": monitor, "tracker": tracker}
    refuse_for_training(chosen, **options)
    with model.frozen():
        return _computed(chosen, model, policy, seed, **options)


def _computed(chosen: Method, model: Model, policy: Policy, seed: int, **training: Any) -> Edit:
    """The edit of a method that suits model and policy; ``training`` are options of ``train``."""
    if isinstance(chosen, Trained):
        from expunge.training.loop import train

        parts, start, steps = train(chosen, model, policy, seed=seed, **training)
        made = edit_of(chosen, model, policy, parts, seed=seed, steps=steps)
        return start + made if start else made
    if isinstance(chosen, Solves):
        with model.reading_once():
            part = Part(policy.erase, chosen.solve(model, policy, seed))
        made = edit_of(chosen, model, policy, [part], seed=seed)
        first = chosen.start_edit(model) if isinstance(chosen, Starting) else None
        return first + made if first else made
    raise ExpungeError(f"{type(chosen).__name__} neither solves nor trains")


def refuse_for_training(method: Method, **options: object) -> None:
    """Refuse options that only a training can use.

    Raises:
        ExpungeError: an option isn't ``None``, and the method doesn't train.
    """
    given = [name for name, value in options.items() if value is not None]
    if given and not isinstance(method, Trained):
        raise ExpungeError(
            f"{', '.join(given)}: {method.name} can't be resumed, watched or tracked, because it "
            "isn't one training; leave this out"
        )


def _check_released(method: Method, policy: Policy) -> None:
    for concept in policy.erase:
        if concept.synonyms and not method.released_synonyms:
            raise ExpungeError(
                f"{concept.target}: synonyms ({', '.join(concept.synonyms)}) need "
                f"fidelity='corrected'; the released program of {method.name} erases the target "
                "alone"
            )
        if concept.contexts:
            raise ExpungeError(
                f"{concept.target}: sentences of its own (contexts) need fidelity='corrected'; "
                "a released program uses the same sentences for all concepts"
            )
