"""The probes beside their released program."""

from collections.abc import Iterator

import torch

from conformance.attacked import attacked, distance
from conformance.case import Case, Difference
from expunge.attacks.probes import Start, ddim_step, noisy_walk, walk
from expunge.models import Model


def steps(case: Case) -> Iterator[Difference]:
    """Single steps of DDIM."""
    given, expected, tolerance = case.file("inputs"), case.file("expected"), case["tolerance"]
    process = case.model().process
    for number, step in enumerate(case["params"]["steps"]):
        before, clean = ddim_step(
            process,
            given["sample"],
            given["model_output"],
            step["timestep"],
            step["previous"],
            step["eta"],
            step["variance_scale"],
            given["variance_noise"],
        )
        near = distance(before, expected[f"prev/{number}"])
        yield Difference(near, tolerance["prev_rel"])
        yield Difference(distance(clean, expected[f"x0/{number}"]), tolerance["x0_rel"])


def _start(case: Case, model: Model) -> Start:
    latents = case.file("inputs")["initial_latent"]
    return latents, model.condition([case["prompts"]["prompt"]]), model.unconditional()


def noise_run(case: Case) -> Iterator[Difference]:
    """A whole picture with more noise."""
    given, params, model = case.file("inputs"), case["params"], attacked(case)
    with torch.no_grad():
        ours = noisy_walk(
            model,
            _start(case, model),
            [given[f"noise/{number}"] for number in range(params["steps"])],
            steps=params["steps"],
            guidance_scale=params["guidance_scale"],
            eta=params["eta"],
            scale=params["variance_scale"],
        )
    near = distance(ours, case.file("expected")["latent"])
    yield Difference(near, case["tolerance"]["latent_rel"])


def completion(case: Case) -> Iterator[Difference]:
    """A picture that two models draw, as it is meant and as it was released."""
    expected, tolerance, params = case.file("expected"), case["tolerance"], case["params"]
    base, model = case.model(), attacked(case)
    count, scale, first = (
        params["steps"],
        params["guidance_scale"],
        params["last_original_step"] + 1,
    )
    begun = _start(case, base)
    handed = walk(base, begun, count, scale, slice(first))
    yield Difference(distance(handed, expected["handover"]), tolerance["handover_rel"])
    for part, name in ((slice(first, None), "latent"), (slice(0, None), "latent_as_released")):
        ours = walk(model, (handed, *begun[1:]), count, scale, part)
        key = "latent_rel" if name == "latent" else "as_released_rel"
        yield Difference(distance(ours, expected[name]), tolerance[key])
