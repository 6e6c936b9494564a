"""``expunge audit``: any checkpoint against a policy, for people, for machines and for CI."""

from functools import reduce
from operator import add
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from expunge.cli import resumable
from expunge.cli.erase import policy_of
from expunge.cli.evaluate import Sampling, sampler_of, show_headline, table
from expunge.concepts import Kind
from expunge.edits.edit import Edit
from expunge.errors import Missed
from expunge.evaluation.audit import Outlook, asking, outlook
from expunge.evaluation.audit import audit as measure
from expunge.evaluation.records import Report
from expunge.evaluation.suite import Options
from expunge.models import load
from expunge.progress import shown
from expunge.report.card import CARD, CERTIFICATE, write_card, write_certificate
from expunge.report.html import FILE, write_html

SAMPLING = Sampling()


def audit(
    model: str,
    /,
    *,
    concept: tuple[str, ...] = (),
    synonym: tuple[str, ...] = (),
    kind: Kind | None = None,
    anchor: str | None = None,
    keep: tuple[str, ...] = (),
    policy: Path | None = None,
    edit: tuple[Path, ...] = (),
    base: str | None = None,
    suite: str = "emoji",
    size: str = "quick",
    seed: tuple[int, ...] = (),
    judge: str = "",
    clip: str = "",
    protocol: tuple[str, ...] = (),
    prompts: Path | None = None,
    captions: Path | None = None,
    perceptual: str = "",
    sampling: Annotated[Sampling, Parameter(name="*")] = SAMPLING,
    output: Path | None = None,
    dry_run: bool = False,
    show_sensitive: bool = False,
) -> None:
    """Measure what a model still draws of a policy's concepts, and whether the rest is intact.

    The model may have been erased by anybody, or not at all. The folder gets report.json,
    report.html, a model card, a certificate with hashes, the pictures, and every judgement. An
    audit that was stopped continues with the same command; another judge or protocol uses the
    same pictures. Limits in the policy file make it end with exit code 1 if one is missed.

    Parameters
    ----------
    model:
        The checkpoint: "emoji", a folder, or a Hugging Face id.
    concept:
        What should be gone, e.g. "santa claus"; repeat it for more.
    synonym:
        Another word for the concept; only with a single --concept.
    kind:
        What the concepts are. Objects by default.
    anchor:
        Of no use here; a policy file may hold it.
    keep:
        What should still be drawn right; repeat it for more.
    policy:
        YAML file with the entries erase, keep and limits, instead of the options above.
    edit:
        An edit file to apply before measuring; several are added up. The model is then the base.
    base:
        Another model to compare with, e.g. the one before it was erased.
    suite:
        The prompts and the judge: emoji, objects, artists, people, unsafe or coco.
    size:
        How many prompts and seeds: "brief", "quick" or "full".
    seed:
        A seed instead of the size's own; repeat it for more.
    judge:
        Who looks, with weights behind a colon: efficientnet, classifier:FOLDER, trained:FILE,
        clip:FOLDER, faces:FOLDER, opennsfw, nudenet, q16:HEAD@CLIP, inception:FILE.
    clip:
        Folder or id of a CLIP that scores how pictures fit their prompts.
    protocol:
        A published protocol that counts detections, see "expunge protocols"; repeat it for more.
    prompts:
        CSV file of prompts that ask for the concept, e.g. I2P.
    captions:
        CSV file of prompts that show what is kept, e.g. COCO-30k.
    perceptual:
        Measure how far each picture is from the base's: efficientnet, or alexnet:FILE for LPIPS.
    output:
        Folder for the results; by default runs/audit- and the model's fingerprint.
    dry_run:
        Say what would be drawn and how long that takes, and draw nothing.
    show_sensitive:
        Don't blur the pictures of sensitive prompts in the page.
    """
    console = Console(highlight=False)
    described = {"synonyms": synonym or None, "kind": kind, "anchor": anchor}
    given = {name: value for name, value in described.items() if value is not None}
    wanted = policy_of(policy, concept, given, keep)
    options = Options(
        judge=judge,
        clip=clip,
        protocols=protocol,
        prompts=str(prompts or ""),
        captions=str(captions or ""),
        perceptual=perceptual,
    )
    edits = [Edit.load(path) for path in edit]
    whole = reduce(add, edits) if edits else None
    sampler = sampler_of(sampling, suite)
    subject = load(model)
    place = output or Path(f"runs/audit-{subject.fingerprint()[:12]}")
    if dry_run:
        asked = asking(
            wanted, suite=suite, size=size, seeds=seed or None, sampler=sampler, options=options
        )
        compared = bool(whole or base)
        _show(console, outlook(asked, subject, place, edit=whole, compared=compared))
        return
    with resumable(f"the finished pictures and judgements in {place}"), shown():
        report = measure(
            subject,
            wanted,
            edit=whole,
            base=(lambda: load(base)) if base else None,
            suite=suite,
            size=size,
            seeds=seed or None,
            sampler=sampler,
            options=options,
            folder=place,
        )
    page = write_html(report, place / FILE, blur=not show_sensitive)
    write_card(report, place / CARD)
    write_certificate(report, place / CERTIFICATE)
    for evaluation in report.evaluations:
        console.print(table(evaluation))
        show_headline(console, evaluation)
    console.print(f"\nwritten: {page}, {place / 'report.json'}, {place / CARD}")
    _judge(console, report)


def _show(console: Console, plan: Outlook) -> None:
    """What would be drawn, and how long it would take."""
    lines = Table("concept", "prompts", "pictures of each model")
    for concept, group, count in plan.groups:
        lines.add_row(concept, group, str(count))
    console.print(lines)
    left = plan.models * plan.pictures - plan.drawn
    minutes = left * plan.seconds_a_picture / 60
    console.print(
        f"{plan.pictures} different pictures, {plan.models} model{'s' * (plan.models > 1)}; of the "
        f"audited one {plan.drawn} are drawn already. At {plan.seconds_a_picture:.2f} s a picture "
        f"at most {minutes:.1f} minutes of drawing."
    )


def _judge(console: Console, report: Report) -> None:
    """Say which limits are met; raise if one isn't."""
    for one in report.verdicts:
        word = "met" if one.passed else "MISSED"
        console.print(
            f"{word}: {one.concept}, {one.group}, {one.metric}: {one.limit}; found {one.found}"
        )
    missed = [one for one in report.verdicts if not one.passed]
    if missed:
        raise Missed(f"{len(missed)} of {len(report.verdicts)} limits")
