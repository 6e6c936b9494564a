"""The suite for everything else: how well pictures fit captions, and how far they moved.

Give COCO-30k or your own list with ``--captions`` and a CLIP with ``--clip``. Without them it
measures drift and set distances on our own everyday scenes. It doesn't measure what was erased.
"""

from collections.abc import Sequence

from expunge.concepts import Concept
from expunge.detectors.base import detector
from expunge.evaluation.panel import Panel, extractor_of, fit_of
from expunge.evaluation.suite import NO_OPTIONS, Group, Options, Plan, Suite, refuse
from expunge.evaluation.suites.worded import captions, sized
from expunge.spelling import spelling


def plan(
    concept: Concept,
    *,
    erased: Sequence[Concept] = (),
    size: str = "quick",
    seeds: Sequence[int] | None = None,
    options: Options = NO_OPTIONS,
) -> Plan:
    """The captions; the concept only names the evaluation in the report."""
    refuse("coco", options, "judge", "clip", "captions")
    chosen = sized(size)
    scenes = captions(options, chosen)
    return Plan(
        suite="coco",
        version=1,
        size=size,
        concept=concept,
        attribute="",
        label=spelling(concept.target),
        groups=(
            Group(
                name="captions",
                role="retention",
                about="the given captions" if options.captions else "everyday scenes",
                prompts=tuple(scenes.prompts),
            ),
        ),
        seeds=tuple(seeds) if seeds is not None else chosen.seeds,
        notes=scenes.notes,
    )


def judge(options: Options, plans: Sequence[Plan]) -> Panel:
    """A network for features (``--judge``, e.g. ``inception:FILE``), and a CLIP if one is named."""
    looks = detector(options.judge) if options.judge else None
    return Panel("", None, extractor_of(looks), fit=fit_of(options.clip))


SUITE = Suite(plan=plan, judge=judge)
