"""Ways to draw beyond the prompt."""

import torch

from expunge.attacks.probes import Completion, NoiseProbe, ddim_step, start, walk
from expunge.attacks.target import Target
from expunge.training.trajectories import ddim


def noise(target: Target) -> torch.Tensor:
    return torch.randn(2, *target.model.latent_shape, generator=torch.Generator().manual_seed(3))


def test_without_noise_a_step_is_ddims(target: Target) -> None:
    process = target.model.process
    scheduler = ddim(process, 10)
    time = int(scheduler.timesteps[2])
    x, answer = noise(target), noise(target).flip(0)
    theirs = scheduler.step(answer, time, x).prev_sample
    for fresh in (torch.zeros_like(x), torch.ones_like(x)):
        ours, _ = ddim_step(process, x, answer, time, time - process.times // 10, 0.0, 1.0, fresh)
        torch.testing.assert_close(ours, theirs)


def test_all_of_the_noise_is_the_ancestral_step(target: Target) -> None:
    process = target.model.process
    time, before = 501, 401
    x, answer, fresh = noise(target), noise(target).flip(0), noise(target).flip(1)
    ours, clean = ddim_step(process, x, answer, time, before, 1.0, 1.0, fresh)
    a, b = (float(process.levels[t]) for t in (time, before))  # type: ignore[attr-defined]
    variance = (1 - b) / (1 - a) * (1 - a / b)
    mean = b**0.5 * (1 - a / b) / (1 - a) * clean + (a / b) ** 0.5 * (1 - b) / (1 - a) * x
    torch.testing.assert_close(ours, mean + variance**0.5 * fresh, atol=1e-5, rtol=1e-4)


def test_who_completes_its_own_picture_draws_it(target: Target) -> None:
    begun = start(target, [0, 1], noise(target))
    sampling = target.sampling
    whole = walk(target.model, begun, sampling.steps, sampling.guidance_scale, slice(None))
    assert torch.equal(Completion(share=0.5).draw(target, [0, 1], noise(target), 0), whole)


def test_the_released_completion_does_all_steps_again(target: Target) -> None:
    released = Completion(share=0.5, fidelity="original").draw(target, [0], noise(target)[:1], 0)
    meant = Completion(share=0.5).draw(target, [0], noise(target)[:1], 0)
    assert not torch.allclose(released, meant)


def test_attempts_differ_and_repeat(target: Target) -> None:
    probe = NoiseProbe()
    assert probe.attempts == 24
    first = probe.draw(target, [0, 1], noise(target), 0, 5)
    assert torch.equal(first, probe.draw(target, [0, 1], noise(target), 0, 5))
    assert not torch.allclose(first, probe.draw(target, [0, 1], noise(target), 0, 6))
    assert probe.begin(target, [0], 0).over
