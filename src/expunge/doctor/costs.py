"""What a method would change, and its cost, measured on this model where that is cheap."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor

from expunge.concepts import Policy
from expunge.doctor.facts import Cost, Pace, Timing
from expunge.edits.payloads import Change, Dense
from expunge.errors import ExpungeError, Unsupported
from expunge.memory import peak_memory
from expunge.method.base import Method, S, Solves, Trained
from expunge.method.run import Run
from expunge.models import Condition, Model
from expunge.seeding import generator
from expunge.training.loop import Trainer

REPEATS = 5
"""A measured time is the median of this many runs."""
PATIENCE = 1.0
"""Seconds; anything that takes longer is run only once."""
QUICKLY = 0.2
"""The same for a prompt, which isn't the main thing."""
TRIAL_BATCHES = 8
"""Batches of a training to make, for an estimate of the others' cost."""


# --- time


def measure(model: Model) -> Pace:
    """Time one pass of the UNet, if it is in memory, and one prompt through the text encoder."""
    return Pace(
        unet=_unet_pass(model, (1, *model.latent_shape)) if model.whole else None,
        text_encoder=timed(lambda: model.encode(["a dog"]), model.device, QUICKLY),
    )


@torch.no_grad()
def _unet_pass(model: Model, shape: Sequence[int]) -> Timing:
    """Time a forward pass for latents ``[batch, channels, height, width]``."""
    noise = torch.randn(tuple(shape), generator=generator(0, "doctor"))
    latents = noise.to(model.device, model.dtype)
    timestep = torch.ones(len(noise), dtype=torch.long, device=model.device)
    prompts = model.condition([""] * len(noise)).to(dtype=model.dtype)
    with model.frozen():
        return timed(lambda: model.predict(latents, timestep, prompts), model.device)


def timed(run: Callable[[], object], device: torch.device, patience: float | None = None) -> Timing:
    """Time a run: the median of ``REPEATS``, or one run if that takes too long.

    ``patience`` is in seconds, ``PATIENCE`` by default.
    """
    seconds = [_seconds(run, device)]
    if seconds[0] < (PATIENCE if patience is None else patience):
        seconds = [_seconds(run, device) for _ in range(REPEATS)]
    return Timing(seconds=median(seconds), repeats=len(seconds))


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    began = _now(device)
    run()
    return _now(device) - began


def _now(device: torch.device) -> float:
    """The time once the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


# --- methods


def cost(model: Model, policy: Policy, method: Method, pace: Pace) -> Cost:
    """What a method would change here, found by trying it; nothing is applied.

    A closed form is run completely. A training takes a few steps on copies of the weights.

    Raises:
        ExpungeError: the method refuses this model or policy, or can't be tried in short.
    """
    method.check_family(model)
    with model.frozen(), peak_memory(model.device) as used:
        if isinstance(method, Trained):
            found = _trained(model, policy, method, pace)
        elif isinstance(method, Solves) and not method.needed - {"text"}:
            found = _solved(model, policy, method)
        else:
            takes = " and ".join(sorted(method.needed - {"text", "gradients"}))
            raise Unsupported(
                f"{takes} is part of its solution and can't be tried in short; what it takes is "
                "seen when it runs"
            )
    return Cost(
        method=method.name,
        needs=tuple(sorted(method.needed)),
        **found,
        peak_bytes=used.peak,
        memory="GPU" if model.device.type == "cuda" else "process",
    )


def _solved(model: Model, policy: Policy, method: Solves) -> dict[str, Any]:
    """Run a closed form completely, and compute the change of every weight."""
    began = _now(model.device)
    payload = method.solve(model, policy, 0)
    if not isinstance(payload, Change):
        raise Unsupported("it changes no weight, and costs nothing beforehand")
    for name in payload.names:
        payload.change(name, model.base_weight(name))
    seconds = _now(model.device) - began
    return {
        **_changed(model, payload.names),
        "rows": _rows(model, payload),
        "edit_bytes": _bytes(payload.tensors()),
        "seconds": seconds,
        "estimated": False,
        "how": "that of one run",
    }


def _rows(model: Model, payload: Change) -> int | None:
    if isinstance(payload, Dense):
        return None
    return max(len(payload.low_rank(name, model.base_weight(name))[1]) for name in payload.names)


def _trained(model: Model, policy: Policy, method: Trained[S], pace: Pace) -> dict[str, Any]:
    """Take a few steps on copies of the weights, and estimate the time of all steps."""
    unet = pace.unet or _unet_pass(model, (1, *model.latent_shape))
    student = method.student(model, policy, 0)
    batch, first, later = _batches(method, Run(student, policy, 0), unet.seconds)
    trainer = Trainer(method, student)
    one = timed(lambda: trainer.step([batch]), model.device)
    batches = method.iterations * method.accumulation
    making = first + (batches - 1) * later
    repeats = "measured once" if one.repeats == 1 else f"median of {one.repeats}"
    return {
        **_changed(model, student.names),
        "rows": None,
        "edit_bytes": _bytes(student.payload().tensors()),
        "seconds": making + batches * one.seconds,
        "estimated": True,
        "how": f"an estimate: {method.iterations} steps of {one.seconds:.3g} s ({repeats}), and "
        f"{making:.3g} s to make what they learn from",
    }


def _batches(
    method: Trained[S], run: Run[S], unet_seconds: float
) -> tuple[Mapping[str, Tensor], float, float]:
    """A batch, and the seconds that the first batch and each later one would take to make.

    The UNet isn't run; its calls are counted instead, and a trajectory costs the sum of its steps'
    times. The rest is measured.
    """
    seconds: list[float] = []
    calls: list[Counter[torch.Size]] = []
    batch: Mapping[str, Tensor] = {}
    model = run.model
    with _denoiser_left_out(model) as noted:
        began = _now(model.device)
        for made in method.batches(run, range(min(TRIAL_BATCHES, method.iterations))):
            seconds.append(_now(model.device) - began)
            calls.append(noted.copy())
            noted.clear()
            batch, began = made, _now(model.device)
    if not seconds:
        raise ExpungeError("it has no batch to train on; name more to erase or to keep")
    prices = _prices(model, set().union(*calls), unet_seconds)
    first, *later = (
        own + sum(count * prices[shape] for shape, count in noted.items())
        for own, noted in zip(seconds, calls, strict=True)
    )
    return batch, first, fmean(later) if later else 0.0


def _prices(model: Model, shapes: set[torch.Size], unet_seconds: float) -> dict[torch.Size, float]:
    """Seconds of a pass for each shape of latents; measured unless that takes long."""
    one = torch.Size(model.latent_shape).numel()
    scaled = {shape: shape.numel() / one * unet_seconds for shape in shapes}
    return {
        shape: _unet_pass(model, shape).seconds if estimate < PATIENCE else estimate
        for shape, estimate in scaled.items()
    }


@contextmanager
def _denoiser_left_out(model: Model) -> "Iterator[Counter[torch.Size]]":
    """Let the denoiser answer zeros, and count its calls by the shape of their latents."""
    calls: Counter[torch.Size] = Counter()

    def zeros(latents: Tensor, time: Tensor, condition: Condition) -> Tensor:
        calls[latents.shape] += 1
        return torch.zeros_like(latents)

    with model.answered_by(zeros):
        yield calls


def _changed(model: Model, names: Sequence[str]) -> dict[str, Any]:
    """The fields of a ``Cost`` that say what changes."""
    roles = model.members
    fitting = [role for role, members in roles.items() if set(names) <= set(members)]
    role = min(fitting, key=lambda fit: len(roles[fit]))
    return {
        "role": role,
        "role_tensors": len(roles[role]),
        "tensors": len(names),
        "parameters": sum(model.base_weight(name).numel() for name in names),
    }


def _bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
