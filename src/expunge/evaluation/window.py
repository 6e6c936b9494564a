"""Prompts that a model reads only in part: how many, and which no longer ask what they should."""

from collections.abc import Iterator, Sequence

from expunge.errors import ExpungeError
from expunge.evaluation.records import CutPrompts
from expunge.evaluation.suite import Group, Plan, Prompt
from expunge.models import Model
from expunge.models.tokens import places
from expunge.models.window import Cut, remark
from expunge.spelling import names, spelling

SHOWN = 40
"""Characters of the first cut prompt that are quoted."""


def as_read(plan: Plan, *models: Model) -> tuple[Plan, CutPrompts | None]:
    """The plan without prompts that ask for nothing once they are cut, and what was cut.

    All models are asked the same, so the one that reads the least of a prompt counts.

    A cut prompt that should show the concept is left out where what is read of it doesn't name it.
    Lists for a judge of something wider than the concept needn't name it; their rows are only left
    out where the name itself is cut off.

    Raises:
        ExpungeError: nothing would be left of a group.
    """
    prompts = [prompt for group in plan.groups for prompt in group.prompts]
    narrowest: dict[int, tuple[Cut, Model]] = {}
    for model in models:
        for cut in model.cut([prompt.text for prompt in prompts]):
            if cut.at not in narrowest or cut.read < narrowest[cut.at][0].read:
                narrowest[cut.at] = cut, model
    if not narrowest:
        return plan, None
    mute = {at for at, (cut, by) in narrowest.items() if _asks_nothing(plan, prompts[at], cut, by)}
    cuts = [narrowest[at][0] for at in sorted(narrowest)]
    longest = max(cuts, key=lambda cut: cut.pieces)
    first = cuts[0].prompt
    quoted = repr(first[:SHOWN] + "…" * (len(first) > SHOWN))
    found = CutPrompts(
        count=len(cuts),
        total=len(prompts),
        longest=longest.pieces,
        read=longest.read,
        left_out=len(mute),
        remark=remark(cuts, len(prompts), quoted),
    )
    return plan.model_copy(update={"groups": tuple(_without(plan.groups, mute))}), found


def _without(groups: Sequence[Group], mute: set[int]) -> Iterator[Group]:
    """The groups without the prompts of these numbers, counted through all groups."""
    at = 0
    for group in groups:
        kept = tuple(p for number, p in enumerate(group.prompts, at) if number not in mute)
        at += len(group.prompts)
        if not kept:
            raise ExpungeError(
                f"no prompt of {group.name!r} names what it asks for within the tokens that the "
                "model reads; write shorter prompts"
            )
        yield group.model_copy(update={"prompts": kept})


def _asks_nothing(plan: Plan, prompt: Prompt, cut: Cut, model: Model) -> bool:
    """Whether a cut prompt should ask for the concept, and no longer does."""
    words = plan.concept.phrases
    by_name = plan.label in set(map(spelling, words))
    if prompt.expected.get(plan.attribute) != plan.label:
        return False
    if not by_name and not names(prompt.text, words, plural=True):
        return False
    return not _reads(model, cut.prompt, words)


def _reads(model: Model, prompt: str, phrases: Sequence[str]) -> bool:
    """Whether one of these phrases stands in what the model reads of a prompt."""
    ids = model.tokens(prompt)
    read: str = model.text_encoders[0].tokenizer.decode(ids)
    return names(read, phrases, plural=True) or any(
        places(ids, model.tokens(words)) for words in phrases
    )
