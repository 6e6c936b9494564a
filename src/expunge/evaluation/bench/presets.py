"""How methods erase from the bundled model: what is kept, in which sentences, which settings."""

from collections.abc import Collection
from itertools import cycle
from typing import Any

from expunge.concepts import Concept, Policy
from expunge.method.presets import presets
from expunge.methods import METHODS, configured
from expunge.models.emoji.vocabulary import catalog
from expunge.spelling import spelling

PRESET = "emoji"
"""Name of the presets for this model, in each method's file."""
TURNS = ("sepce", "spm")
"""Methods in which each step trains one of the concepts."""


def policy(*concepts: Concept) -> Policy:
    """``concepts`` in the model's sentences; all other objects, or styles, are kept in them too."""
    known = catalog()
    gone = {spelling(phrase) for concept in concepts for phrase in concept.phrases}

    def placed(concept: Concept) -> Concept:
        others = known.styles if concept.kind == "style" else known.objects
        keep = tuple(one.name for one in others if one.name not in gone)
        return concept.model_copy(update={"keep": keep, "contexts": contexts(concept, gone)})

    return Policy(erase=tuple(map(placed, concepts)))


def contexts(concept: Concept, gone: Collection[str] = ()) -> tuple[str, ...]:
    """The model's sentences for an object, one per style, or for a style, one per object.

    Templates take turns. No sentence names a style or an object that is ``gone``, because then its
    picture would have to lose both.
    """
    known = catalog()
    styled = cycle([template for template in known.templates if "{style}" in template])
    colours = cycle([background.name for background in known.backgrounds])
    if concept.kind == "style":
        others = [entry.name for entry in known.objects if entry.name not in gone]
        fillings = [{"object": name, "style": "{}"} for name in others]
    else:
        others = [style.name for style in known.styles if style.name not in gone]
        fillings = [{"object": "{}", "style": name} for name in others]
    sentences = [
        template.format(background=colour, **filling)
        for filling, template, colour in zip(fillings, styled, colours, strict=False)
    ]
    plain = [template for template in known.templates if "{style}" not in template]
    if concept.kind != "style":
        sentences += [
            template.format(object="{}", background=colour)
            for template, colour in zip(plain, colours, strict=False)
        ]
    return tuple(dict.fromkeys(sentences))


def settings(method: str, *concepts: Concept) -> dict[str, Any]:
    """Settings of a method for the bundled model: its preset ``emoji``, if it has one.

    All that stays is named, so there is no prior. If concepts take turns, each gets as many steps
    as it would alone.
    """
    values: dict[str, Any] = {"preset": PRESET} if PRESET in presets(METHODS.get(method)) else {}
    if "prior" in METHODS.get(method).model_fields:
        values["prior"] = None
    if method in TURNS and len(concepts) > 1:
        steps = configured(method, **values).model_dump()["iterations"]
        values["iterations"] = steps * len(concepts)
    return values
