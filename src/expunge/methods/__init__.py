"""All methods by name, and ``erase``, which runs one of them."""

import os
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from expunge.concepts import Concept, Policy, explain
from expunge.edits.component import Base, Component, Provenance
from expunge.edits.edit import Edit
from expunge.errors import ExpungeError
from expunge.method.base import Method, Part, Solves, Trained
from expunge.models import Model
from expunge.registry import Registry
from expunge.versions import versions

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
        "rece": "expunge.methods.rece:RECE",
        "sepce": "expunge.methods.sepme.sepce:SepCE",
        "spm": "expunge.methods.spm.method:SPM",
        "trce": "expunge.methods.trce.closed:TRCE",
        "trce-steering": "expunge.methods.trce.steering:TRCESteering",
        "uce": "expunge.methods.uce.method:UCE",
        "uce-debias": "expunge.methods.uce.debias:Debias",
    },
    entry_points="expunge.methods",
)


def settings(name: str) -> type[Method]:
    """The method of this name, a pydantic class whose fields are its settings."""
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


def erase(
    model: Model,
    concepts: str | Concept | Policy | Iterable[str | Concept],
    method: str | Method = "uce",
    *,
    seed: int = 0,
    checkpoints: str | os.PathLike[str] | None = None,
    monitor: "Monitor | None" = None,
    tracker: str | None = None,
    **values: Any,
) -> Edit:
    """Compute the edit that makes ``model`` stop drawing ``concepts``; the model stays as it is.

    Args:
        model: a base model, without any edit applied.
        concepts: words, concepts, or a policy.
        method: a name of ``expunge methods`` or a configured method.
        seed: decides every random draw.
        checkpoints: folder from which a stopped training resumes, with the same result.
        monitor: looks at a training on the way and may end it.
        tracker: an experiment tracker that accelerate knows and that a training reports to.
        **values: settings of the method.

    Raises:
        ExpungeError: a concept, a method or a setting is wrong, or the model is edited already.
    """
    policy = Policy.of(concepts)
    if values and not isinstance(method, str):
        raise ExpungeError(f"{', '.join(values)}: give settings to the method that you configure")
    chosen = configured(method, **values) if isinstance(method, str) else method
    if model.components:
        raise ExpungeError("the model has an edit applied; revert it, edits are made for the base")
    if chosen.fidelity == "original":
        _check_released(policy)
    steps, start = None, None
    if isinstance(chosen, Solves):
        parts: Sequence[Part] = [Part(policy.erase, chosen.solve(model, policy, seed))]
    elif isinstance(chosen, Trained):
        from expunge.training.loop import train

        parts, start, steps = train(
            chosen,
            model,
            policy,
            seed=seed,
            checkpoints=checkpoints,
            monitor=monitor,
            tracker=tracker,
        )
    else:
        raise ExpungeError(f"{type(chosen).__name__} neither solves nor trains")

    fingerprint = cache(model.fingerprint)

    def component(part: Part) -> Component:
        provenance = Provenance(
            method=chosen.name,
            settings=chosen.model_dump(mode="json"),
            concepts=part.concepts,
            keep=policy.kept,
            seed=seed,
            base=Base(name=model.name, fingerprint=fingerprint(part.payload.names)),
            steps=steps,
            versions=versions(),
        )
        return Component(part.payload, provenance)

    made = Edit(tuple(map(component, parts)))
    return start + made if start else made


def _check_released(policy: Policy) -> None:
    for concept in policy.erase:
        if concept.contexts:
            raise ExpungeError(
                f"{concept.target}: sentences of its own (contexts) are for fidelity='corrected'; "
                "a released program has one list for all concepts: the setting contexts, if any"
            )
