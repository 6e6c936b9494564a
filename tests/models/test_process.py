"""Noise: what the denoiser is asked for and what its answer means fit together."""

from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from expunge.errors import ExpungeError, Unsupported
from expunge.models.process import Diffusion, Flow, Process

LEVELS: dict[str, Any] = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
}  # fmt: skip


def diffusion(prediction: str = "epsilon") -> Diffusion:
    return Diffusion(diffusers.DDIMScheduler(prediction_type=prediction, **LEVELS))


def flow() -> Flow:
    return Flow(diffusers.FlowMatchEulerDiscreteScheduler())


PROCESSES = {"noise": diffusion(), "v": diffusion("v_prediction"), "velocity": flow()}
TIMES = torch.tensor([0, 1, 250, 700, 999])


def drawn(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Clean latents and noise, one for each of ``TIMES``."""
    draws = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, len(TIMES), 4, 3, 3, generator=draws, dtype=dtype)
    return clean, noise


@pytest.mark.parametrize("kind", PROCESSES)
def test_the_target_means_the_noise_and_the_latents_it_is_made_of(kind: str) -> None:
    process: Process = PROCESSES[kind]
    clean, noise = drawn()
    mixed = process.mix(clean, noise, TIMES)
    target = process.target(clean, noise, TIMES)
    assert process.prediction == kind
    torch.testing.assert_close(process.noise(target, mixed, TIMES), noise, rtol=0, atol=1e-9)
    torch.testing.assert_close(process.clean(target, mixed, TIMES), clean, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", PROCESSES)
def test_noise_grows_with_time_and_rows_have_their_own(kind: str) -> None:
    process: Process = PROCESSES[kind]
    clean, noise = drawn()
    mixed = process.mix(clean, noise, TIMES)
    for row, time in enumerate(TIMES):
        alone = process.mix(clean[row : row + 1], noise[row : row + 1], time[None])
        assert torch.equal(alone[0], mixed[row])
    far = (mixed - clean).flatten(1).norm(dim=1)
    assert bool((far[1:] > far[:-1]).all())
    assert process.times == 1000


def test_a_diffusion_mixes_and_asks_as_diffusers_does() -> None:
    clean, noise = drawn(torch.float32)
    for prediction in ("epsilon", "v_prediction"):
        process = diffusion(prediction)
        ours = process.mix(clean, noise, TIMES)
        assert torch.equal(ours, process.native.add_noise(clean, noise, TIMES))
    velocity = process.native.get_velocity(clean, noise, TIMES)
    assert torch.equal(process.target(clean, noise, TIMES), velocity)


def test_a_flow_mixes_and_steps_as_diffusers_does() -> None:
    process, (clean, noise) = flow(), drawn(torch.float32)
    scheduler = process.scheduler("euler", 10)
    at = scheduler.timesteps[4]
    mixed = scheduler.scale_noise(clean, at[None], noise)
    time = at.expand(len(clean))
    torch.testing.assert_close(process.mix(clean, noise, time), mixed)
    stepped = scheduler.step(process.target(clean, noise, time), at, mixed).prev_sample
    after = process.mix(clean, noise, scheduler.timesteps[5].expand(len(clean)))
    torch.testing.assert_close(stepped, after)


def test_half_precision_latents_keep_their_precision() -> None:
    clean, noise = drawn(torch.bfloat16)
    for process in PROCESSES.values():
        for made in (process.mix, process.target):
            assert made(clean, noise, TIMES).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ddim", "DDIMScheduler"),
        ("pndm", "PNDMScheduler"),
        ("lms", "LMSDiscreteScheduler"),
        ("euler", "EulerDiscreteScheduler"),
        ("dpm++", "DPMSolverMultistepScheduler"),
        ("native", "DDIMScheduler"),
    ],
)
def test_each_scheduler_is_fresh_and_has_the_levels_of_the_process(name: str, kind: str) -> None:
    process = diffusion("v_prediction")
    made = process.scheduler(name, 7)
    assert type(made).__name__ == kind
    assert torch.equal(made.alphas_cumprod, process.levels)
    assert made.config.prediction_type == "v_prediction"
    assert made.num_inference_steps == 7
    assert made is not process.native
    assert process.native.num_inference_steps is None


def test_ddim_clips_nothing_and_options_take_precedence() -> None:
    process = diffusion()
    assert process.native.config.clip_sample
    assert not process.scheduler("ddim", 3).config.clip_sample
    assert process.scheduler("native", 3).config.clip_sample
    assert process.scheduler("ddim", 4, steps_offset=1).timesteps.tolist() == [751, 501, 251, 1]


def test_what_a_process_does_not_have_is_refused() -> None:
    with pytest.raises(ExpungeError, match=r"'heun': a diffusion has ddim, .*, native"):
        diffusion().scheduler("heun", 3)
    with pytest.raises(ExpungeError, match="'ddim': a flow has euler, native"):
        flow().scheduler("ddim", 3)
    for process in PROCESSES.values():
        with pytest.raises(ExpungeError, match="1001 steps: the model has only 1000"):
            process.scheduler("native", 1001)
    with pytest.raises(Unsupported, match="'sample'; known are epsilon, v_prediction"):
        _ = diffusion("sample").prediction
