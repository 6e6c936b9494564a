"""What an edit would change in a model, how the model reads your words, and what methods cost.

The facts are typed records. Nothing is applied or saved; the model is unchanged afterwards.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from torch import Tensor

from expunge.concepts import Policy
from expunge.doctor.costs import cost, measure
from expunge.doctor.facts import Anatomy, Cost, Diagnosis, Harm, NetworkSize, Refusal
from expunge.doctor.words import compare, read, warn
from expunge.edits.applied import check_unedited
from expunge.edits.damage import damage
from expunge.edits.edit import Edit
from expunge.errors import ExpungeError, Unsupported
from expunge.method.base import Method, Solves
from expunge.method.wording import check_drawn
from expunge.methods import METHODS, configured
from expunge.models import Model
from expunge.versions import versions

__all__ = ["Diagnosis", "anatomy", "examine"]


def examine(
    model: Model,
    policy: Policy | None = None,
    method: Method | None = None,
    edits: Sequence[Edit] = (),
) -> Diagnosis:
    """Describe a model, how it reads a policy's words, and the cost of erasing them.

    Args:
        model: a base model; it is unchanged afterwards.
        policy: what is to be erased; without one, only the model is described.
        method: the method to try; by default all closed forms, with their defaults.
        edits: what they do to everyday words is said too, for each by itself.

    Raises:
        ExpungeError: the model is edited already, or a method is given without a policy.
    """
    check_unedited(model, "the facts are of the base")
    if method and not policy:
        raise ExpungeError(f"{method.name}: what it changes depends on what is erased; name it")
    harms = tuple(_harm(model, edit) for edit in edits)
    found = Diagnosis(model=anatomy(model), pace=measure(model), harms=harms)
    if not policy:
        return found
    with model.reading_once():
        return _examined(model, policy, method, found)


def _examined(model: Model, policy: Policy, method: Method | None, found: Diagnosis) -> Diagnosis:
    """What is known of a model, and of a policy's words and cost beside it."""
    phrases, likenesses = read(model, policy), compare(model, policy)
    costs: list[Cost] = []
    refusals: list[Refusal] = []
    for name, make in _chosen(method).items():
        try:
            trial = make()
            check_drawn(trial, policy)
            if trial.needed - {"text"}:
                model.check_draws()
            costs.append(cost(model, policy, trial, found.pace))
        except ExpungeError as error:
            refusals.append(Refusal(method=name, reason=str(error).removeprefix(f"{name}: ")))
    return Diagnosis(
        model=found.model,
        pace=found.pace,
        phrases=phrases,
        likenesses=likenesses,
        warnings=tuple(warn(model, policy, phrases, likenesses)),
        costs=tuple(costs),
        refusals=tuple(refusals),
        harms=found.harms,
    )


def _harm(model: Model, edit: Edit) -> Harm:
    """What an edit does to everyday words.

    Raises:
        ExpungeError: it isn't for this model.
    """
    edit.check_base(model)
    said = Harm(edit=edit.id, summary=edit.summary())
    try:
        return said.model_copy(update={"damage": damage(model, edit)})
    except Unsupported as error:
        return said.model_copy(update={"reason": str(error)})


def _chosen(method: Method | None) -> dict[str, Callable[[], Method]]:
    """The methods to try, as functions that make them: the given one, or all closed forms."""
    if method:
        return {method.name: lambda: method}
    names = (name for name in METHODS if issubclass(METHODS.get(name), Solves))
    return {name: partial(configured, name) for name in names}


def anatomy(model: Model) -> Anatomy:
    """Sizes of the networks and of every role."""
    networks = model.networks
    weights = dict(model.denoiser.named_parameters())
    return Anatomy(
        name=model.name,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        classes=model.classes,
        networks=tuple(_part(k, dict(v.named_parameters())) for k, v in networks.items()),
        text_width=model.text_width,
        positions=model.window,
        latent_shape=model.latent_shape,
        image_size=model.image_size,
        no_drawing=_no_drawing(model),
        roles=tuple(
            _part(role, {name: weights[name] for name in names})
            for role, names in model.members.items()
        ),
        versions=versions(),
    )


def _no_drawing(model: Model) -> str | None:
    try:
        model.check_draws()
    except Unsupported as reason:
        return str(reason)
    return None


def _part(name: str, parameters: Mapping[str, Tensor]) -> NetworkSize:
    return NetworkSize(
        name=name,
        tensors=len(parameters),
        parameters=sum(tensor.numel() for tensor in parameters.values()),
        bytes=sum(tensor.numel() * tensor.element_size() for tensor in parameters.values()),
    )
