"""``expunge audit``: any checkpoint against a policy, for people, for machines and for CI."""

from functools import reduce
from operator import add
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from expunge.cli import resumable
from expunge.cli.drawing import USUAL_SAMPLER, SamplerOptions
from expunge.cli.evaluate import show_headline, table
from expunge.cli.options import (
    NamedConcepts,
    OptionGroup,
    PlanSeeds,
    ShowSensitive,
)
from expunge.edits.edit import Edit
from expunge.errors import Missed
from expunge.evaluation.audit import Outlook, asking, outlook
from expunge.evaluation.audit import audit as measure
from expunge.evaluation.evaluate import suite_for
from expunge.evaluation.records import Report
from expunge.evaluation.suite import Options
from expunge.files import check_output
from expunge.models import Model, load
from expunge.progress import shown
from expunge.report.card import CARD, CERTIFICATE, write_card, write_certificate
from expunge.report.html import FILE, write_html


class AuditedConcepts(NamedConcepts):
    """Concepts that should be gone."""

    concept: tuple[str, ...] = ()
    """What should be gone, e.g. "santa claus"; repeat it for more."""
    keep: tuple[str, ...] = ()
    """What should still be drawn right; repeat it for more."""
    policy: Path | None = None
    """YAML file with the entries erase, keep and limits, instead of concepts named by options."""


class SuiteOptions(OptionGroup):
    """What is asked of a model, and who looks at the pictures."""

    suite: str | None = None
    """The prompts and the judge: objects, artists, people, unsafe or coco. The bundled model has
    its own: emoji, and pairs for two things side by side."""
    size: str = "quick"
    """How many prompts and seeds: "brief", "quick" or "full"."""
    seed: PlanSeeds = ()
    judge: str = ""
    """Who looks, with weights behind a colon: efficientnet, classifier:FOLDER, trained:FILE,
    clip:FOLDER, faces:FOLDER, opennsfw, nudenet, q16:HEAD@CLIP, inception:FILE."""
    clip: str = ""
    """Folder or id of a CLIP that scores how pictures fit their prompts."""
    protocol: tuple[str, ...] = ()
    """A published protocol that counts detections, see "expunge protocols"; repeat it for more."""
    prompts: Path | None = None
    """CSV file of prompts that ask for the concept, e.g. I2P."""
    captions: Path | None = None
    """CSV file of prompts that show what is kept, e.g. COCO-30k."""
    perceptual: str = ""
    """Measure how far each picture is from the base's: efficientnet, or alexnet:FILE for LPIPS."""

    def arguments(self, model: Model) -> dict[str, Any]:
        """The same as ``asking`` and ``audit`` take it.

        Raises:
            ExpungeError: no suite is named, and the model has none of its own.
        """
        options = Options(
            judge=self.judge,
            clip=self.clip,
            protocols=self.protocol,
            prompts=str(self.prompts or ""),
            captions=str(self.captions or ""),
            perceptual=self.perceptual,
        )
        seeds = self.seed or None
        suite = suite_for(model, self.suite)
        return {"suite": suite, "size": self.size, "seeds": seeds, "options": options}


NO_CONCEPTS, USUAL_SUITE = AuditedConcepts(), SuiteOptions()


def audit(
    model: str,
    /,
    *,
    concepts: Annotated[AuditedConcepts, Parameter(name="*")] = NO_CONCEPTS,
    edit: tuple[Path, ...] = (),
    base: str | None = None,
    asked: Annotated[SuiteOptions, Parameter(name="*")] = USUAL_SUITE,
    sampler: SamplerOptions = USUAL_SAMPLER,
    output: Path | None = None,
    dry_run: bool = False,
    show_sensitive: ShowSensitive = False,
) -> None:
    """Measure what a model still draws of a policy's concepts, and whether the rest is intact.

    It doesn't matter who erased the concepts, or whether anybody did. The folder gets report.json,
    report.html, a model card, a certificate with hashes, the pictures, and every judgement. An
    audit that was stopped continues with the same command; another judge or protocol uses the
    same pictures. If a limit in the policy file is missed, the exit code is 1.

    Parameters
    ----------
    model:
        The checkpoint: "emoji", a folder, or a Hugging Face id.
    edit:
        An edit file to apply before measuring; several are added up. The model is then the base.
    base:
        Another model to compare with, e.g. the one before it was erased.
    output:
        Folder for the results; by default runs/audit- and the model's fingerprint.
    dry_run:
        Say what would be drawn and how long that takes, and draw nothing.
    """
    console = Console(highlight=False, markup=False)
    policy, edits = concepts.to_policy(), [Edit.load(path) for path in edit]
    whole = reduce(add, edits) if edits else None
    if output and not dry_run:
        check_output(output, folder=True)
    subject = load(model)
    known = subject.fingerprint()
    folder = output or Path(f"runs/audit-{known[:12]}")
    arguments = {**asked.arguments(subject), "sampler": sampler}
    if dry_run:
        found = outlook(
            asking(policy, **arguments),
            subject,
            folder,
            edit=whole,
            base=(lambda: load(base)) if base else None,
            fingerprint=known,
        )
        _show(console, found)
        return
    with resumable(f"the finished pictures and judgements in {folder}"), shown():
        report = measure(
            subject,
            policy,
            edit=whole,
            base=(lambda: load(base)) if base else None,
            folder=folder,
            fingerprint=known,
            **arguments,
        )
    _write(console, report, folder, blur=not show_sensitive)
    _judge(console, report)


def _write(console: Console, report: Report, folder: Path, *, blur: bool) -> None:
    """Write the page, the card and the certificate, and show the numbers."""
    page = write_html(report, folder / FILE, blur=blur)
    write_card(report, folder / CARD)
    write_certificate(report, folder / CERTIFICATE)
    for evaluation in report.evaluations:
        console.print(table(evaluation, console.width))
        show_headline(console, evaluation)
    console.print(f"\nwritten: {page}, {folder / 'report.json'}, {folder / CARD}")


def _show(console: Console, plan: Outlook) -> None:
    """What would be drawn, and how long it would take."""
    lines = Table("concept", "prompts", "pictures of each model")
    for concept, group, count in plan.groups:
        lines.add_row(concept, group, str(count))
    console.print(lines)
    for remark in plan.remarks:
        console.print(remark, markup=False)
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
