"""What Ablating Concepts and its released programs share: prompts, and a pass of the student."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from expunge.concepts import Concept
from expunge.errors import ExpungeError
from expunge.method.student import Student
from expunge.models import Condition
from expunge.spelling import whole

SUFFIX, PREFIX = "{prompt}, in the style of {words}", "in {words}'s style, {prompt}"
"""Where a style's words go in a prompt."""
UNSAFE = ("{words}, {prompt}", "{prompt}, {words}", "{prompt} {words}")
"""Where an unsafe concept's words go in a prompt."""


def _beside(concept: Concept) -> bool:
    """Whether its words are added to an anchor's prompt instead of replacing the anchor's words."""
    return concept.kind in ("style", "unsafe")


def _place(anchor: str, parts: bool) -> re.Pattern[str]:
    return re.compile(re.escape(anchor)) if parts else whole(anchor)


def anchor_prompts(
    prompts: Sequence[str], concept: Concept, *, memorized: bool = False, parts: bool = False
) -> tuple[str, ...]:
    """The prompts that ``target_prompts`` can turn into prompts of this concept.

    The anchor must be there as whole words; with ``parts``, as in the released programs, also
    inside of others.

    Raises:
        ExpungeError: there is none.
    """
    anchor = concept.replacement
    if memorized or _beside(concept):
        return tuple(prompts)
    held = tuple(prompt for prompt in prompts if anchor and _place(anchor, parts).search(prompt))
    if not held:
        raise ExpungeError(
            f"no prompt holds the anchor of {concept.target!r}, {anchor!r}, so its words have "
            "nothing to replace; name an anchor, and prompts that hold it"
        )
    return held


def target_prompts(
    prompt: str,
    concept: Concept,
    words: str,
    *,
    style: tuple[str, ...] = (SUFFIX, PREFIX),
    memorized: bool = False,
    parts: bool = False,
) -> tuple[str, ...]:
    """Prompts that name the target by ``words`` where ``prompt`` names its anchor.

    The words of a style or of something unsafe are added to the prompt. The words of a thing
    replace the anchor's, found as in ``anchor_prompts``. A memorised picture is named by its own
    words alone.
    """
    if memorized:
        return (words,)
    if not _beside(concept):
        return (_place(concept.replacement, parts).sub(lambda _: words, prompt),)
    forms = style if concept.kind == "style" else UNSAFE
    return tuple(form.format(prompt=prompt, words=words) for form in forms)


def predict_start_detached(
    student: Student, latents: Tensor, timestep: Tensor, condition: Condition
) -> Tensor:
    """The student's prediction, without gradients through the keys and values of the start token.

    All prompts share that token, so training through it would change them all.
    """

    def detached(rows: Tensor) -> Tensor:
        return torch.cat([rows[:, :1].detach(), rows[:, 1:]], 1)

    with student.model.projections_changed(detached):
        return student.predict(latents, timestep, condition)
