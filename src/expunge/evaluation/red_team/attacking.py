"""Attacking one model: what is known, what is searched for, what is drawn and judged."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from pydantic import ValidationError
from torch import nn

from expunge.attacks.base import Attack
from expunge.attacks.known import Known, know, prompts_for, seen
from expunge.attacks.probes import Probe
from expunge.attacks.running import Finding, run
from expunge.attacks.tampering import Tampering
from expunge.attacks.target import Target
from expunge.detectors.critic import Critic
from expunge.edits.applied import check_unedited
from expunge.edits.edit import Edit
from expunge.errors import ExpungeError, Unsupported
from expunge.evaluation.evaluate import Question
from expunge.evaluation.red_team.drawing import Drawing, kept_prompts
from expunge.evaluation.red_team.records import Attacked, AttackRecord, Counted, worst
from expunge.evaluation.red_team.tampering import tampered
from expunge.evaluation.suite import Plan, Record
from expunge.files import digest, file_name, write_json
from expunge.generation import Sampler
from expunge.models import Model
from expunge.prompts.lexicon import refused
from expunge.tensors import read, write
from expunge.versions import versions

EXPLICIT = "explicit"
"""The group of prompts whose pictures are attacked."""
ENTRY = "expunge"

R = TypeVar("R", bound=Record)


class Budget(NamedTuple):
    """How much is attacked, and how hard."""

    pictures: int = 21
    calls: int = 150
    """Of the denoiser, for each picture and attack; those with gradients count three times."""
    seed: int = 0


USUAL = Budget()


class Prepared(NamedTuple):
    """A model that is about to be attacked."""

    target: Target
    drawing: Drawing
    place: Path
    """Folder of all that is about this model, these prompts, this noise and this judge."""
    fingerprint: str
    """Of the base."""


def attacked(
    model: Model,
    edit: Edit | None,
    question: Question,
    attacks: Sequence[Attack],
    folder: Path,
    *,
    base: Model | None = None,
    budget: Budget = USUAL,
    critic: Critic | None = None,
    fingerprint: str | None = None,
    keep_pictures: bool = True,
) -> Attacked:
    """Attack a model, and count what comes back.

    Args:
        model: without any edit applied; it is unchanged afterwards.
        edit: what is attacked; ``None`` for the control on the base.
        question: of one concept; its prompts with the concept's name take turns.
        attacks: one after the other, on the same pictures.
        folder: for what is found and drawn; a stopped attack goes on there.
        base: draws the concept's pictures that an attacker knows, if ``model`` isn't the base: a
            checkpoint that somebody else edited, or one that never saw the concept.
        budget: how many pictures, and how many calls of the denoiser for each.
        critic: for attacks that descend on what an image-text model says.
        fingerprint: the model's, if it is known; computing it reads all weights.
        keep_pictures: write what is drawn.

    Raises:
        ExpungeError: the model is edited, the concept is one that is never drawn, there is nothing
            to attack, or a judge fails.
    """
    ready = prepared(
        model, edit, question, attacks, folder, base, budget, critic, fingerprint, keep_pictures
    )
    plan = ready.drawing.plan
    with model.frozen(), torch.inference_mode(False), torch.enable_grad():
        by_name = _by_name(ready)
        rows = tuple(recorded(one, ready, budget) for one in attacks)
    return Attacked(
        concept=plan.concept.target,
        kind=plan.concept.kind,
        label=plan.label,
        edit=edit.id if edit else "",
        summary=edit.summary() if edit else f"{model.name}, as it is",
        fingerprint=ready.fingerprint,
        prompts=ready.target.prompts,
        budget=budget.calls,
        seed=budget.seed,
        sampler=Sampler.of(model, question.sampler).record(model),
        judge=question.judge.name,
        judge_sha256=question.judge.sha256,
        critic=critic.identity.name if critic else "",
        by_name=by_name,
        attacks=rows,
        worst=worst(by_name, rows),
        versions=versions(),
    )


def prepared(
    model: Model,
    edit: Edit | None,
    question: Question,
    attacks: Sequence[Attack],
    folder: Path,
    base: Model | None,
    budget: Budget,
    critic: Critic | None,
    fingerprint: str | None,
    keep_pictures: bool,
) -> Prepared:
    """What is known of a model before attacks; the arguments are those of ``attacked``."""
    check_unedited(model, "its base is asked too")
    [plan] = question.plans
    prompts = _prompts(plan, attacks, budget)
    sampler = Sampler.of(model, question.sampler)
    known_by = fingerprint or model.fingerprint()
    drawn_by = base.fingerprint() if base else known_by
    facts = [drawn_by, sampler.record(model), list(prompts), budget.seed]
    place = folder / f"known-{digest(facts)[:12]}"
    known = _known(base or model, prompts, sampler, budget.seed, place)
    if base:
        known = _in_another(model, base, known, budget.seed)
        facts.append(known_by)
    target = Target(
        model, edit, plan.concept, prompts, known, sampler.sampling(model), critic, _kept(plan)
    )
    for attack in attacks:
        with suppress(Unsupported):  # which is recorded
            attack.check(target)
    told = [question.judge.sha256, critic.identity.sha256 if critic else ""]
    own = [*facts, edit.id if edit else "", *told]
    place = folder / f"{edit.id if edit else 'base'}-{digest(own)[:12]}"
    drawing = Drawing(target, question, budget.seed, place if keep_pictures else None)
    return Prepared(target, drawing, place, known_by)


def _kept(plan: Plan) -> tuple[str, ...]:
    """Prompts whose pictures attacks may learn from; the others are judged."""
    aim = " ".join(plan.concept.phrases)
    texts = [prompt.text for prompt in kept_prompts(plan)[1::2]]
    return tuple(text for text in texts if not refused({"aim": aim, "prompt": text}))


def _prompts(plan: Plan, attacks: Sequence[Attack], budget: Budget) -> tuple[str, ...]:
    """A prompt for each picture.

    Raises:
        ExpungeError: there is none, or the concept is one that is never drawn.
    """
    if refused({"concept": " ".join(plan.concept.phrases)}):
        raise ExpungeError("this concept is never drawn, so it can't be attacked")
    if budget.pictures < 1 or not attacks:
        raise ExpungeError("no picture or no attack: nothing would be attacked")
    if budget.calls < 1:
        raise ExpungeError(
            f"a budget of {budget.calls} calls a picture: nothing would be searched for, which "
            "says nothing about the model"
        )
    for group in plan.groups:
        if group.name == EXPLICIT:
            return prompts_for([prompt.text for prompt in group.prompts], budget.pictures)
    raise ExpungeError(f"the {plan.suite} suite has no prompts that ask for {plan.label!r} alone")


def _known(base: Model, prompts: Sequence[str], sampler: Sampler, seed: int, path: Path) -> Known:
    """What the base draws of the concept, once for all edits."""
    file = path.with_suffix(".safetensors")
    if file.exists():
        _, tensors = read(file, ENTRY, "pictures of the concept")
        return Known(**{name: tensor.to(base.device) for name, tensor in tensors.items()})
    with base.frozen():
        known = know(base, prompts, sampler.sampling(base), seed)
    write(file, ENTRY, {}, {name: one.contiguous() for name, one in vars(known).items()})
    return known


def _in_another(model: Model, base: Model, known: Known, seed: int) -> Known:
    """What the base's pictures tell about another model.

    The base's answers say something only where its latents mean the same pictures.
    """
    if _same(model.decoder, base.decoder):
        return Known(**{name: one.to(model.device) for name, one in vars(known).items()})
    with base.frozen(), torch.no_grad():
        colours = base.colours(known.clean)
    with model.frozen():
        clean, _ = model.posterior(colours.to(model.device))
        return seen(model, clean.to(model.dtype), seed)


def _same(one: nn.Module, two: nn.Module) -> bool:
    """Whether two networks have the same weights."""
    ours, theirs = one.state_dict(), two.state_dict()
    return ours.keys() == theirs.keys() and all(
        torch.equal(weight.cpu(), theirs[name].cpu()) for name, weight in ours.items()
    )


def _by_name(ready: Prepared) -> Counted:
    """What asking by name gives, or what an earlier run counted."""
    done = ready.place / "by-name.json"
    if done.exists():
        return read_record(Counted, done)
    found = ready.drawing("by-name", dict(enumerate(ready.target.prompts)))
    write_json(done, found.model_dump(mode="json"))
    return found


def read_record(kind: type[R], done: Path) -> R:
    """What an earlier run counted."""
    try:
        return kind.model_validate_json(done.read_bytes())
    except ValidationError:
        raise ExpungeError(f"{done}: damaged; delete it to count again") from None


def findings(attack: Attack, ready: Prepared, budget: Budget) -> list[Finding]:
    """What an attack finds, or found in an earlier run.

    Raises:
        Unsupported: the model can't be attacked so.
    """
    name, key = named(attack, ready, budget)
    return list(run(attack, ready.target, budget.calls, budget.seed, ready.place / name, key))


def named(attack: Attack, ready: Prepared, budget: Budget) -> tuple[str, str]:
    """What its files are called, and what tells it from others."""
    facts: list[object] = [attack.name, attack.model_dump(mode="json"), ready.place.name]
    if attack.spends:
        facts.append(budget.calls)
    if isinstance(attack, Tampering):
        facts.append([prompt.text for prompt in kept_prompts(ready.drawing.plan)])
    key = digest(facts)[:12]
    return f"{file_name(attack.name)}-{key}", key


def recorded(attack: Attack, ready: Prepared, budget: Budget) -> AttackRecord:
    """One attack, or what an earlier run counted of it."""
    settings, drawing = attack.model_dump(mode="json"), ready.drawing
    name, _ = named(attack, ready, budget)
    done = ready.place / f"{name}.json"
    if done.exists():
        return read_record(AttackRecord, done)
    if isinstance(attack, Probe):
        return _counted(attack, settings, ready.target, done, drawing)
    if isinstance(attack, Tampering):
        return tampered(attack, settings, budget.calls, drawing, _by_name(ready), done)
    try:
        searched = findings(attack, ready, budget)
    except Unsupported as error:
        return AttackRecord(attack=attack.name, settings=settings, refused=str(error))
    found = {at: one.found for one in searched for at in one.pictures}
    begun = {at: one.control for one in searched for at in one.pictures}
    record = AttackRecord(
        attack=attack.name,
        settings=settings,
        success=drawing(name, {at: drawing.asked(one) for at, one in found.items()}),
        control=drawing(f"{name}-control", {at: drawing.asked(one) for at, one in begun.items()}),
        calls=sum(one.calls for one in searched),
        ids=tuple(found[at].ids for at in range(len(found))),
        losses=tuple(found[at].loss for at in range(len(found))),
    )
    write_json(done, record.model_dump(mode="json"))
    return record


def _counted(
    probe: Probe, settings: dict[str, Any], target: Target, done: Path, drawing: Drawing
) -> AttackRecord:
    """A probe, which searches for nothing: its control is drawn as the model usually is."""
    pictures, steps = len(target.prompts), target.sampling.steps
    try:
        success = drawing.probed(done.stem, probe)
    except Unsupported as error:
        return AttackRecord(attack=probe.name, settings=settings, refused=str(error))
    record = AttackRecord(
        attack=probe.name,
        settings=settings,
        success=success,
        control=drawing(f"{done.stem}-control", dict(enumerate(target.prompts))),
        calls=probe.attempts * 2 * steps * pictures,
    )
    write_json(done, record.model_dump(mode="json"))
    return record
