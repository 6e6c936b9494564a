"""SLD beside its released program and UnlearnDiffAtk's copy."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from conformance.case import Case, Difference, pooled
from expunge.edits.safe_guidance import Rule
from expunge.methods import configured, erase
from expunge.methods.sld import SLD
from expunge.models import Model

RULE = {
    "warmup": "sld_warmup_steps",
    "scale": "sld_guidance_scale",
    "threshold": "sld_threshold",
    "momentum_scale": "sld_momentum_scale",
    "momentum_beta": "sld_mom_beta",
}
"""The case's names of our settings."""


def guidance(case: Case) -> Iterator[Difference]:
    """What guidance follows, step by step, for given predictions and every preset."""
    scale, given = case["params"]["guidance_scale"], case.file("inputs")["eps"]
    for name, values in case["params"]["presets"].items():
        method = configured("sld", fidelity="original", preset=name.replace("_", "-"))
        assert isinstance(method, SLD)
        assert {key: getattr(method, key) for key in RULE} == {
            k: values[n] for k, n in RULE.items()
        }
        ours = torch.stack(list(_guided(method.rule(), given, scale)))
        theirs = case.file("expected")[f"guided/{name}"]
        yield Difference(pooled({"": ours}, {"": theirs}), case["tolerance"][f"{name}_rel"])


def _guided(rule: Rule, given: Tensor, scale: float) -> Iterator[Tensor]:
    before = torch.zeros_like(given[0, :1])
    for number, predicted in enumerate(given):
        empty, prompted, concept = predicted[:, None]
        correction = rule.correction(empty, prompted, concept, before)
        before = rule.remembered(before, correction)
        turned = prompted - correction * rule.acts(number, torch.tensor(0))
        yield (empty + scale * (turned - empty))[0]


def sampling(case: Case) -> Iterator[Difference]:
    """Latents of a whole run of the pipeline with the guard applied."""
    params, prompts, expected = case["params"], case["prompts"], case.file("expected")
    model = case.model()
    if "sld_warmup_steps" in params:
        values = {key: params[name] for key, name in RULE.items()}
    else:
        values = {"preset": params["preset"], "warmup_by": "time"}
    edit = erase(model, prompts["safety_concept"], "sld", fidelity="original", **values)
    with edit.applied(model):
        steps = latents(model, case, prompts["prompt"])
    tolerance = case["tolerance"]
    yield Difference(pooled({"": steps[-1]}, {"": expected["latent"]}), tolerance["latent_rel"])
    for number, ours in enumerate(steps):
        if (theirs := expected.get(f"latent_after/{number}")) is not None:
            most = tolerance["latent_rel_first" if number == 0 else "latent_rel"]
            yield Difference(pooled({"": ours}, {"": theirs}), most)


def latents(model: Model, case: Case, prompt: str, **options: Any) -> list[Tensor]:
    """The latents after each step of the pipeline's own loop, with the case's scheduler."""
    params, found = case["params"], []
    name, changed = params["scheduler"].partition(" ")[0].strip(",").lower(), {}
    if name == "lms":
        changed = {"timestep_spacing": "linspace", "steps_offset": 0}
    known = {"dpm": "dpm++", "pndm": "native"}
    pipe: Any = model.pipe
    pipe.scheduler = model.process.scheduler(known.get(name, name), params["steps"], **changed)
    pipe.set_progress_bar_config(disable=True)

    def seen(_: object, number: int, time: object, kept: dict[str, Tensor]) -> dict[str, Tensor]:
        found.append(kept["latents"])
        return kept

    pipe(
        prompt,
        latents=case.file("inputs")["initial_latent"],
        height=128,
        width=128,
        num_inference_steps=params["steps"],
        guidance_scale=params["guidance_scale"],
        output_type="latent",
        callback_on_step_end=seen,
        **options,
    )
    return found
