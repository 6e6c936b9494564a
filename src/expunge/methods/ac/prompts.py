"""What Ablating Concepts and its released programs share: prompts, pictures, passes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from expunge.concepts import Concept
from expunge.errors import ExpungeError
from expunge.method.student import Student
from expunge.models import Condition

SUFFIX, PREFIX = "{prompt}, in the style of {words}", "in {words}'s style, {prompt}"
"""Where a style's words go in a prompt."""
UNSAFE = ("{words}, {prompt}", "{prompt}, {words}", "{prompt} {words}")
"""Where the words of something unsafe go."""


def _beside(concept: Concept) -> bool:
    """Whether its words go beside an anchor's prompt, not in the place of the anchor's words."""
    return concept.kind in ("style", "unsafe")


def anchor_prompts(
    prompts: Sequence[str], concept: Concept, *, memorized: bool = False
) -> tuple[str, ...]:
    """Those of some prompts that can be made into prompts of this concept by ``target_prompts``.

    Raises:
        ExpungeError: there are none.
    """
    anchor = concept.replacement
    if memorized or _beside(concept):
        return tuple(prompts)
    held = tuple(prompt for prompt in prompts if anchor and anchor in prompt)
    if not held:
        raise ExpungeError(
            f"no prompt holds the anchor of {concept.target!r}, {anchor!r}, whose place its words "
            "take; name an anchor, and prompts that hold it"
        )
    return held


def target_prompts(
    prompt: str,
    concept: Concept,
    words: str,
    *,
    style: tuple[str, ...] = (SUFFIX, PREFIX),
    memorized: bool = False,
) -> tuple[str, ...]:
    """Prompts that name the target by ``words`` where ``prompt`` names its anchor.

    A style and something unsafe are put beside the prompt, the words of a thing take the place of
    the anchor's, and a memorised picture is named by its own words alone.
    """
    if memorized:
        return (words,)
    if not _beside(concept):
        return (prompt.replace(concept.replacement, words),)
    forms = style if concept.kind == "style" else UNSAFE
    return tuple(form.format(prompt=prompt, words=words) for form in forms)


def predict_start_detached(
    student: Student, latents: Tensor, timestep: Tensor, condition: Condition
) -> Tensor:
    """The student's prediction, without gradients through the keys and values of the start token.

    All prompts share that token: what is taught through it changes them all.
    """

    def detached(rows: Tensor) -> Tensor:
        return torch.cat([rows[:, :1].detach(), rows[:, 1:]], 1)

    with student.model.projections_changed(detached):
        return student.predict(latents, timestep, condition)
