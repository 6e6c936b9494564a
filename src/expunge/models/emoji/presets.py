"""Erasing from the bundled model: everything else it knows is kept, in its own sentences."""

from itertools import cycle
from typing import Any

from expunge.concepts import Concept, Policy
from expunge.methods import METHODS, configured
from expunge.methods.presets import presets
from expunge.models.emoji.vocabulary import catalog

PRESET = "emoji"
"""What the presets for this model are called, in each method's file."""
TURNS = ("sepce", "spm")
"""Methods whose steps are for one concept each."""
MOST_STEPS = 1000


def policy(*concepts: Concept) -> Policy:
    """``concepts``, and all other objects (or, for styles, all other styles) to keep."""
    known = catalog()
    gone = {phrase.lower() for concept in concepts for phrase in concept.phrases}
    keep: list[str] = []
    if any(concept.kind == "style" for concept in concepts):
        keep += [style.name for style in known.styles]
    if any(concept.kind != "style" for concept in concepts):
        keep += [entry.name for entry in known.objects]
    return Policy(erase=concepts, keep=tuple(words for words in keep if words not in gone))


def contexts(concept: Concept) -> tuple[str, ...]:
    """The model's sentences around an object, one in each style, or around a style, one an object.

    Every template takes its turn.
    """
    known = catalog()
    styled = cycle([template for template in known.templates if "{style}" in template])
    colours = cycle([background.name for background in known.backgrounds])
    if concept.kind == "style":
        fillings = [{"object": entry.name, "style": "{}"} for entry in known.objects]
    else:
        fillings = [{"object": "{}", "style": style.name} for style in known.styles]
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
    """Settings of a method for the bundled model: its preset ``emoji``, in the model's sentences.

    A method without this preset gets its defaults. Where concepts take turns, each of several gets
    as many steps as one alone would, as long as all together take no more than ``MOST_STEPS``.
    """
    own = {"preset": PRESET} if PRESET in presets(METHODS.get(method)) else {}
    values: dict[str, Any] = {"contexts": contexts(concepts[0]), **own}
    if method in TURNS and len(concepts) > 1:
        steps = configured(method, **values).model_dump()["iterations"]
        values["iterations"] = min(steps * len(concepts), MOST_STEPS)
    return values
