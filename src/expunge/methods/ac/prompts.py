"""What Ablating Concepts and its released programs share: prompts, pictures, passes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from expunge.concepts import Concept
from expunge.errors import ExpungeError
from expunge.method.student import Student
from expunge.methods.mace.batches import noised
from expunge.models import Model

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


@contextmanager
def start_detached(unet: nn.Module) -> Iterator[None]:
    """No gradient through the keys and values of a prompt's first token, its start.

    All prompts share it: what is taught through it changes them all.
    """
    handles = [
        module.register_forward_hook(
            lambda _, __, rows: torch.cat([rows[:, :1].detach(), rows[:, 1:]], 1)
        )
        for name, module in unet.named_modules()
        if name.endswith((".attn2.to_k", ".attn2.to_v"))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def predict(student: Student, latents: Tensor, timestep: Tensor, embeddings: Tensor) -> Tensor:
    """The student's noise prediction, with all gradients but those ``start_detached`` stops."""
    with start_detached(student.model.unet):
        return student.predict(latents, timestep, embeddings)


def regression_target(model: Model, latents: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
    """What a UNet learns to predict, shaped like ``latents``: the noise, or the velocity.

    The velocity is ``sqrt(a_t) e - sqrt(1 - a_t) x``, in models that predict it.
    """
    if model.pipe.scheduler.config.prediction_type != "v_prediction":
        return noise
    return noised(model, noise, -latents, timestep)
