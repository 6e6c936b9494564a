"""What the cases of attacks share: the attacked model, and what an attacker knows of it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from conformance.case import Case, Difference
from expunge.attacks.known import Known
from expunge.attacks.target import Target
from expunge.concepts import Concept
from expunge.edits.edit import Edit
from expunge.edits.safe_guidance import Rule
from expunge.models import Model
from expunge.models.sampling import Sampling


def attacked(case: Case) -> Model:
    """The case's model with the weights that were attacked."""
    model = case.model()
    if (erased := case["params"].get("erased_unet")) is not None:
        with torch.no_grad():
            for name, weight in load_file(case.folder / erased).items():
                model.denoiser.get_parameter(name).copy_(weight)
    return model


def target_of(
    model: Model, prompt: str, clean: Tensor, edit: Edit | None = None, guidance: float = 7.5
) -> Target:
    """A target whose points aren't needed, with pictures ``clean``."""
    nothing = clean[:0]
    known = Known(clean, nothing, torch.zeros(0).long(), torch.zeros(0).long(), nothing, nothing)
    return Target(
        model,
        edit,
        Concept(target=prompt),
        (prompt,) * len(clean),
        known,
        Sampling("ddim", 50, guidance),
    )


def answer(model: Model, latents: Tensor, time: Tensor, prompts: Sequence[str]) -> Tensor:
    """Of the base, without gradients."""
    with torch.no_grad():
        condition = model.condition(prompts)
        if len(condition) < len(latents):
            condition = condition.expand(len(latents))
        return model.predict(latents, time, condition)


def distance(ours: Tensor, theirs: Tensor) -> float:
    """Relative Frobenius distance."""
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


def moved(ours: Tensor, theirs: Tensor, start: Tensor, tolerance: float) -> Difference:
    """Distance of what steps have changed."""
    return Difference(distance(ours - start, theirs - start), tolerance)


def equal(ours: Sequence[int], theirs: Sequence[int]) -> Difference:
    """Whether integers agree, which they must."""
    return Difference(float(list(ours) != list(theirs)), 0.0)


def rule_of(settings: Mapping[str, Any]) -> Rule:
    """The rule of safe latent diffusion that a case gives."""
    return Rule(
        int(settings["sld_warmup_steps"]),
        settings["sld_guidance_scale"],
        settings["sld_threshold"],
        settings["sld_momentum_scale"],
        settings["sld_mom_beta"],
    )
